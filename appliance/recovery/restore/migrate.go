package restore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"countersign/appliance/anchor"
	"countersign/appliance/change"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/derive"
)

// ErrSealedBefore means that the anchor knows a sealed store, and the store is not sealed.
var ErrSealedBefore = errors.New("the store of this host was sealed before, and this one is not")

// Migration seals a store of a release before the seals, once. The roots are verified
// under a root that the administrator knows, the records of clients and administrators by
// their MACs. What grants something and cannot be verified ends.
type Migration struct {
	// List describes what the administrator must confirm, one line each: what ends, and
	// what nothing verifies.
	List []string

	host     Host
	root     protocol.PublicKey
	now      time.Time
	token    hsm.Token
	old      *sqlite.Old
	contents sqlite.Contents
	macs     []keyring.Key // held versions of mac
	sealing  sqlite.Sealing
}

// Sealed describes a store that was sealed.
type Sealed struct {
	Records uint64 // in force, verified
	Revoked int    // clients
	Before  string // path of the store as it was
}

// Migrate reads the store of a host and verifies what it can, without changing it. The
// caller must close the result.
func Migrate(ctx context.Context, host Host, root protocol.PublicKey) (*Migration, error) {
	if revision := host.Anchor.Floor().Revision; revision > 0 {
		return nil, fmt.Errorf("the anchor in %s has revision %d: %w", host.StateDir, revision, ErrSealedBefore)
	}
	old, err := sqlite.OpenOld(ctx, host.Store)
	if err != nil {
		return nil, err
	}
	m := &Migration{host: host, root: root, now: time.Now().UTC(), old: old}
	if err := m.read(ctx); err != nil {
		return nil, errors.Join(err, old.Close())
	}
	return m, nil
}

// Close removes what Migrate made, but not a store that Seal put in place.
func (m *Migration) Close() error { return m.old.Close() }

func (m *Migration) read(ctx context.Context) (err error) {
	if m.contents, err = m.old.Read(); err != nil {
		return err
	}
	if len(m.contents.Settings) == 0 {
		return fmt.Errorf("%s: %w", m.host.Store, keyring.ErrNotInitialized)
	}
	settings, err := keyring.ParseSettings(m.contents.Settings)
	if err != nil {
		return err
	}
	settings.HandleEpoch = keyring.NewHandleEpoch() // so that no earlier challenge is answered
	m.contents.Settings = settings.Values()
	if m.token, err = m.host.Token(ctx); err != nil {
		return err
	}
	pins := keyuse.Pins{Anchor: anchor.InMemory(m.host.Anchor.Current()), Root: m.root}
	if err := pins.Verify(m.contents.Claims); err != nil {
		return err
	}
	if err := keyuse.SealKeys(ctx, m.token, m.contents.Keys, m.host.Seals); err != nil {
		return err
	}
	m.sealing = sqlite.Sealing{
		Seals: m.host.Seals, Settings: m.contents.Settings, Clients: map[protocol.ClientID]bool{}, Admins: map[[8]byte]bool{},
		Unverified: map[[8]byte][]store.ChangeSignature{}, Now: m.now,
	}
	if err := m.readPolicy(); err != nil {
		return err
	}
	m.readKeys()
	for _, d := range m.contents.Devices {
		m.say("device %s, %s, shown as %q, floor %d, %s", d.Name, d.SPIFFEID, d.Display, d.Floor, d.Status)
	}
	return inOrder(ctx, m.readClients, m.readAdmins, m.readChanges)
}

func (m *Migration) say(format string, args ...any) {
	m.List = append(m.List, fmt.Sprintf(format, args...))
}

func (m *Migration) readPolicy() error {
	e := m.contents.Ending
	m.say("ends: %d open activation codes, %d approvals that wait, %d open change requests, %d password attempts, "+
		"and every challenge under way", e.Invitations, e.Approvals, e.Changes, e.Attempts)
	p := m.contents.Policy
	rules, err := policy.ParseStored(p.Document)
	if err != nil {
		return fmt.Errorf("policy version %d: %w", p.Version, err)
	}
	m.sealing.Currency = func(s protocol.Service) string { return rules.Currency(s) }
	m.say("policy %d, hash %x", p.Version, rules.Hash())
	return nil
}

// readKeys lists the keys with the dates that no certificate covers.
func (m *Migration) readKeys() {
	for _, row := range m.contents.Keys {
		k := keyring.Key{Key: row}
		if k.Name == keyring.MAC && k.Held() {
			m.macs = append(m.macs, k)
		}
		var dates strings.Builder
		for _, d := range []struct {
			name string
			at   time.Time
		}{
			{"activated", k.ActivatedAt},
			{"retired", k.RetiredAt},
			{"suspended", k.SuspendedAt},
			{"compromised", k.CompromisedAt},
			{"destroyed", k.DestroyedAt},
		} {
			if !d.at.IsZero() {
				dates.WriteString(", " + d.name + " " + d.at.UTC().Format(time.RFC3339))
			}
		}
		m.say("key %s, id %x%s", k.Label(), k.ID, dates.String())
	}
}

// fits reports whether mac is the record's MAC, as releases before the seals wrote it,
// under any held version of mac.
func (m *Migration) fits(ctx context.Context, r derive.Record, mac []byte) (fits bool, err error) {
	for _, k := range m.macs {
		if fits, err = keyuse.CheckMAC(ctx, m.token, k, derive.RecordInput(r), mac); err != nil || fits {
			break
		}
	}
	return fits, err
}

// readClients lists clients with what their MACs do not cover: names, counters, password
// guards and limits.
func (m *Migration) readClients(ctx context.Context) error {
	for _, c := range m.contents.Clients {
		fits, err := m.fits(ctx, derive.Record{
			Kind: string(store.KindClient), Client: c.ID, SigningKey: c.SigningKey, UVKey: c.UVKey, Verifier: c.Verifier,
			Status: uint64(c.Status), Roles: c.Roles, Version: c.Version,
		}, c.MAC)
		if err != nil {
			return fmt.Errorf("record MAC of client %s: %w", c.ID, err)
		}
		if !fits {
			m.say("client %s (%s): its record MAC does not fit, so it is revoked", c.Name, c.ID)
			continue
		}
		m.sealing.Clients[c.ID] = true
		m.say("client %s (%s), %s, roles %v, highest counter %d, %d wrong passwords",
			c.Name, c.ID, c.Status, c.Roles, c.Restraint.Highest, c.Guard.Wrong)
		for _, w := range c.Windows {
			since := time.Unix(w.Start, 0).UTC().Format(time.RFC3339)
			m.say("  service %d used since %s: %d times, %d", w.Service, since, w.Count, w.Amount)
		}
	}
	return nil
}

func (m *Migration) readAdmins(ctx context.Context) error {
	for _, one := range m.contents.Admins {
		fits, err := m.fits(ctx, derive.Record{
			Kind: string(audit.KindAdmins), Client: one.ID, SigningKey: one.Key, Status: uint64(one.Status),
			Roles: []string{one.Name}, Version: one.Version,
		}, one.MAC)
		if err != nil {
			return fmt.Errorf("record MAC of administrator %q: %w", one.Name, err)
		}
		if !fits {
			m.say("administrator %s, %s: the record MAC does not fit, so it is removed", one.Name, one.Key)
			continue
		}
		m.sealing.Admins[one.ID] = true
		m.say("administrator %s, %s, %s", one.Name, one.Key, one.Status)
	}
	return nil
}

// readChanges lists executed requests with signatures that do not verify. Such a signature
// no longer counts.
func (m *Migration) readChanges(ctx context.Context) error {
	for _, c := range m.contents.Changes {
		if c.State != store.ChangeExecuted {
			continue
		}
		for _, s := range c.Signatures {
			ok, err := m.signed(ctx, c, s)
			if err != nil {
				return err
			}
			if !ok {
				m.sealing.Unverified[c.ID] = append(m.sealing.Unverified[c.ID], s)
				m.say("change %s was made, and a signature by %x does not verify: the signature is removed", change.ID(c.ID), s.Signer)
			}
		}
	}
	return nil
}

func (m *Migration) signed(ctx context.Context, c store.Change, s store.ChangeSignature) (bool, error) {
	hash := change.HashOf(c.Document)
	if s.Signer == [8]byte{} { // the admin socket
		return m.fits(ctx, derive.Record{
			Kind: "change", Client: protocol.ClientID(hash.ID()), Verifier: hash[:], Status: uint64(store.Active),
			Roles: []string{policy.Local}, Version: 1,
		}, s.Signature)
	}
	signature, err := change.ParseSignature(s.Signature)
	if err != nil {
		return false, nil
	}
	for _, one := range m.contents.Admins {
		if one.ID == s.Signer {
			return signature.Verify(hash, one.Key) == nil, nil
		}
	}
	return false, nil
}

// Seal seals the store, puts it in place, and verifies it as the daemon does at its start.
// sum is the hash of the list as the administrator confirmed it, for the audit.
func (m *Migration) Seal(ctx context.Context, sum string) (sealed Sealed, err error) {
	m.sealing.Record = audit.Act(ctx, audit.KindStore, "migrate", map[string]any{
		"event": "sealed", "list_sha256": sum, "root": m.root[:], "mac": m.host.Seals.InForce(),
		"clients": len(m.sealing.Clients), "administrators": len(m.sealing.Admins),
	})
	if err := m.old.Seal(ctx, m.sealing); err != nil {
		return sealed, err
	}
	pins := keyuse.Pins{Anchor: m.host.Anchor, Root: m.root}
	if err := pins.Verify(m.contents.Claims); err != nil { // creates the anchor
		return sealed, err
	}
	if sealed.Before, err = m.old.Put(); err != nil {
		return sealed, err
	}
	if err := m.old.Close(); err != nil {
		return sealed, err
	}
	s, err := sqlite.Open(ctx, sqlite.Config{Path: m.host.Store, Existing: true})
	if err != nil {
		return sealed, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := keyuse.Unseal(ctx, m.token, s, m.host.Seals, pins); err != nil {
		return sealed, err
	}
	if _, err := keyuse.Load(ctx, m.token, s, pins); err != nil {
		return sealed, err
	}
	records, forged, err := s.Verify(ctx)
	sealed.Records, sealed.Revoked = records, len(m.contents.Clients)-len(m.sealing.Clients)
	return sealed, errors.Join(append(forged, err)...)
}
