package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/anchor"
	"countersign/appliance/change"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/derive"
)

var (
	// errSealedBefore: the anchor knows a sealed store, and this one is not sealed.
	errSealedBefore = errors.New("the store of this host was sealed before, and this one is not")
	// errExpect: the list is not the one that the administrator has confirmed.
	errExpect = errors.New("the list is another than the one that was confirmed")
)

func migrateCommand(path *string) *cobra.Command {
	var m migration
	var seal bool
	var dir string
	cmd := &cobra.Command{
		Use: "migrate --seal --root KEY", Args: cobra.NoArgs,
		Short: "Seal a store of a release before the seals",
		Long: "Seal a store of a release before the seals, once, while no daemon runs.\n" +
			"The roots are verified under KEY, the records of clients and administrators by their MACs. What grants\n" +
			"something and cannot be verified ends: open activation codes, approvals that wait, open change requests and\n" +
			"stored answers. The rest is printed as a list: read it, and confirm it by its hash with --expect.\n" +
			"The store as it was stays beside the sealed one.",
	}
	cmd.Flags().BoolVar(&seal, "seal", false, "seal the store")
	cmd.Flags().StringVar(&m.root, "root", "", "public key of a root of this appliance, as countersignctl key show root prints it")
	cmd.Flags().StringVar(&m.expect, "expect", "", "hash of the list that you have read; without it the list is printed and nothing is changed")
	cmd.Flags().StringVar(&dir, "dir", "", "directory of countersignd dev, in place of the configuration")
	_ = cmd.MarkFlagRequired("seal") // the flags are there
	_ = cmd.MarkFlagRequired("root")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		load := func() (*config.Appliance, error) { return config.LoadAppliance(*path) }
		if dir != "" {
			load = func() (*config.Appliance, error) { return devConfig(cmd.Context(), dir) }
		}
		cfg, err := load()
		if err != nil {
			return explain(err)
		}
		m.cfg, m.now = cfg, time.Now().UTC()
		said, err := m.run(cmd)
		if err != nil {
			return explain(err)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
		return err
	}
	return cmd
}

// migration is the sealing of one store.
type migration struct {
	cfg          *config.Appliance
	root, expect string
	now          time.Time

	parts    *parts
	old      *sqlite.Old
	contents sqlite.Contents
	unsealed *keyring.Unsealed
	sealing  sqlite.Sealing
	list     []string // what an administrator is to confirm
}

// run returns what the administrator is told.
func (m *migration) run(cmd *cobra.Command) (said string, err error) {
	ctx := cmd.Context()
	root, err := parseRoot(m.root)
	if err == nil && m.root == "" {
		err = errors.New("--root is empty: want a root's public key")
	}
	if err != nil {
		return "", cli.Fail(cli.Usage, err, "KEY is 66 hexadecimal digits")
	}
	if m.parts, err = newParts(m.cfg, around(cmd, m.cfg.Log)); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.parts.close()) }()
	if revision := m.parts.anchor.Floor().Revision; revision > 0 {
		return "", fmt.Errorf("%s knows revision %d: %w", anchorPath(m.cfg), revision, errSealedBefore)
	}
	if m.old, err = sqlite.OpenOld(ctx, m.cfg.Store.Path); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.old.Close()) }()
	if err := m.read(ctx, around(cmd, m.cfg.Log), root); err != nil {
		return "", err
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(m.list, "\n")+"\n")))
	switch m.expect {
	case "":
		return strings.Join(m.list, "\n") + "\n\nNothing was changed. If all of this is as it should be, seal it:\n" +
			fmt.Sprintf("countersignd migrate --seal --root %s --expect %s", m.root, sum), nil
	case sum:
		return m.seal(ctx, root, sum)
	}
	return "", fmt.Errorf("it has hash %s: %w", sum, errExpect)
}

// read reads the store, verifies what can be verified, and lists the rest.
func (m *migration) read(ctx context.Context, from surroundings, root protocol.PublicKey) (err error) {
	if m.contents, err = m.old.Read(); err != nil {
		return err
	}
	if len(m.contents.Settings) == 0 {
		return fmt.Errorf("%s: %w", m.cfg.Store.Path, keyring.ErrNotInitialized)
	}
	settings, err := keyring.ParseSettings(m.contents.Settings)
	if err != nil {
		return err
	}
	settings.HandleEpoch = keyring.NewHandleEpoch() // no challenge of before is answered
	m.contents.Settings = settings.Values()
	if err := m.parts.openTokens(ctx, m.cfg, from.secrets); err != nil {
		return err
	}
	pins := keyring.Pins{Anchor: anchor.InMemory(m.parts.anchor.Current()), Root: root}
	if m.unsealed, err = keyring.ReadUnsealed(ctx, m.parts.token, m.contents.Claims, m.parts.seals, pins); err != nil {
		return err
	}
	m.sealing = sqlite.Sealing{
		Seals: m.parts.seals, Settings: m.contents.Settings,
		Clients: map[protocol.ClientID]bool{}, Admins: map[[8]byte]bool{}, Unverified: map[[8]byte][]store.ChangeSignature{}, Now: m.now,
	}
	for _, step := range []func(context.Context) error{m.readPolicy, m.readKeys, m.readDevices, m.readClients, m.readAdmins, m.readChanges} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (m *migration) say(format string, args ...any) {
	m.list = append(m.list, cli.Printable(fmt.Sprintf(format, args...)))
}

func (m *migration) readPolicy(context.Context) error {
	e := m.contents.Ending
	m.say("ends: %d open activation codes, %d approvals that wait, %d open change requests, %d password attempts, and every challenge under way",
		e.Invitations, e.Approvals, e.Changes, e.Attempts)
	p := m.contents.Policy
	rules, err := policy.Parse(p.Document)
	if err != nil {
		return fmt.Errorf("policy version %d: %w", p.Version, err)
	}
	m.sealing.Currency = func(s protocol.Service) string { return rules.Currency(uint64(s)) }
	m.say("policy %d, hash %x", p.Version, rules.Hash())
	return nil
}

func (m *migration) readKeys(context.Context) error {
	for _, k := range m.contents.Keys {
		var dates []string
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
				dates = append(dates, ", "+d.name+" "+d.at.UTC().Format(time.RFC3339))
			}
		}
		m.say("key %s, id %x%s", keyring.Label(k.Name, k.Version), k.ID, strings.Join(dates, ""))
	}
	return nil
}

func (m *migration) readDevices(context.Context) error {
	for _, d := range m.contents.Devices {
		m.say("device %s, %s, shown as %q, floor %d, %s", d.Name, d.SPIFFEID, d.Display, d.Floor, d.Status)
	}
	return nil
}

// readClients lists clients with what their MACs do not cover: names, counters, password
// guards and limits.
func (m *migration) readClients(ctx context.Context) error {
	for _, c := range m.contents.Clients {
		fits, err := m.unsealed.Fits(ctx, derive.Record{
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
		m.say("client %s (%s), %s, roles %v, highest counter %d, %d wrong passwords", c.Name, c.ID, c.Status, c.Roles, c.Restraint.Highest, c.Guard.Wrong)
		for _, w := range c.Windows {
			m.say("  service %d used since %s: %d times, %d", w.Service, time.Unix(w.Start, 0).UTC().Format(time.RFC3339), w.Count, w.Amount)
		}
	}
	return nil
}

func (m *migration) readAdmins(ctx context.Context) error {
	for _, one := range m.contents.Admins {
		fits, err := m.unsealed.Fits(ctx, derive.Record{
			Kind: string(audit.KindAdmins), Client: one.ID, SigningKey: one.Key, Status: uint64(one.Status), Roles: []string{one.Name}, Version: one.Version,
		}, one.MAC)
		if err != nil {
			return fmt.Errorf("record MAC of administrator %q: %w", one.Name, err)
		}
		if !fits {
			m.say("administrator %s, %s: the record MAC does not fit, so it goes", one.Name, one.Key)
			continue
		}
		m.sealing.Admins[one.ID] = true
		m.say("administrator %s, %s, %s", one.Name, one.Key, one.Status)
	}
	return nil
}

// readChanges lists requests that were made and whose signatures do not all verify. Such
// a signature counts for nothing any more.
func (m *migration) readChanges(ctx context.Context) error {
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
				m.say("change %s was made, and a signature by %x does not verify: the signature goes", change.ID(c.ID), s.Signer)
			}
		}
	}
	return nil
}

func (m *migration) signed(ctx context.Context, c store.Change, s store.ChangeSignature) (bool, error) {
	hash := change.HashOf(c.Document)
	if s.Signer == [8]byte{} { // the word of the admin socket
		return m.unsealed.Fits(ctx, derive.Record{
			Kind: "change", Client: protocol.ClientID(hash.ID()), Verifier: hash[:], Status: uint64(store.Active), Roles: []string{policy.Local}, Version: 1,
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

// seal seals the store, puts it in place, and verifies it as a start of the daemon does.
func (m *migration) seal(ctx context.Context, root protocol.PublicKey, sum string) (string, error) {
	m.sealing.Record = audit.NewRecord(audit.KindStore, "migrate", map[string]any{
		"event": "sealed", "list_sha256": sum, "root": root[:], "mac": m.parts.seals.InForce(),
		"clients": len(m.sealing.Clients), "administrators": len(m.sealing.Admins),
	})
	if err := m.old.Seal(ctx, m.sealing); err != nil {
		return "", err
	}
	pins := keyring.Pins{Anchor: m.parts.anchor, Root: root}
	if err := keyring.Verify(m.contents.Claims, pins); err != nil { // which makes the anchor
		return "", err
	}
	before, err := m.old.Put()
	if err != nil {
		return "", err
	}
	if err := m.old.Close(); err != nil {
		return "", err
	}
	if m.parts.store, err = sqlite.Open(ctx, sqlite.Config{Path: m.cfg.Store.Path, Existing: true}); err != nil {
		return "", err
	}
	if _, err := m.parts.registry(ctx, pins); err != nil {
		return "", err
	}
	records, forged, err := m.parts.store.Verify(ctx)
	err = errors.Join(append(forged, err)...)
	return fmt.Sprintf("sealed: %d records in force verified, %d clients are revoked\nThe store as it was is %s: remove it once all is well.\n"+
		"Next: countersignd serve, then countersignctl key backup and store backup.",
		records, len(m.contents.Clients)-len(m.sealing.Clients), before), err
}
