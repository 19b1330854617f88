package world

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"countersign/appliance/anchor"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyring/chain"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery"
	"countersign/appliance/recovery/custody"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
)

// World is what the building left: files, a token, and what everybody holds.
type World struct {
	Template string   // database file, closed, with its anchor
	Earlier  []string // the same at earlier moments, the oldest first
	Now      time.Time
	Escrow   *ecdh.PublicKey
	Shares   []custody.Share

	Root    protocol.PublicKey // the true one
	Genuine trust.State        // followed from it at the end
	Certs   [][]byte           // KeyCerts of decision and client-ca that devices may know

	Phones    map[string]*phone.Phone
	Codes     map[string]enrol.ActivationCode
	Operators map[string]Operator
	Changes   map[string]requests.Change
	Dialogs   map[string]*Dialog
	Backup    []byte   // of the keys, as of the end
	Vouched   []byte   // statement of the database, as of the end
	Lenient   []byte   // a policy that was never applied
	Strict    [32]byte // hash of the policy in force

	token *memory.Token
}

// EmptyToken is where the keys of a backup come back.
func EmptyToken() *memory.Token { return memory.New() }

// Place is where a copy of the world's database stands, with a token of its own.
func (w *World) Place(path string) Place {
	return Place{Path: path, Root: w.Root, Token: w.token.Clone(), Escrow: w.Escrow, Clock: NewClock(w.Now)}
}

// Hash pins the true root.
func (w *World) Hash() protocol.RootHash { return w.Root.RootHash() }

// builder builds a world in a directory.
type builder struct {
	*World
	*House
	dir   string
	place Place
}

// Build builds a world. It takes a second or two.
func Build(ctx context.Context, dir string) (*World, error) {
	b := &builder{dir: dir, World: &World{
		Template: filepath.Join(dir, "template.db"),
		Phones:   map[string]*phone.Phone{}, Codes: map[string]enrol.ActivationCode{}, Operators: map[string]Operator{},
		Changes: map[string]requests.Change{}, Dialogs: map[string]*Dialog{},
	}}
	if err := b.found(ctx); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context)
	}{
		{"administrators", b.appoint},
		{"devices and phones", b.populate},
		{"snapshot", b.snapshot},
		{"requests", b.request},
		{"rotations", b.rotate},
		{"departures", b.depart},
		{"first dialogs", b.converse},
		{"snapshot", b.snapshot},
		{"answers", b.settle},
		{"invitations", b.invite},
		{"open requests", b.leaveOpen},
		{"backup", b.backUp},
	} {
		if err := harness.Try(func() { step.do(ctx) }); err != nil {
			return nil, errors.Join(fmt.Errorf("building the world: %s: %w", step.name, err), b.Close())
		}
	}
	b.Now = b.place.Clock.Now()
	return b.World, errors.Join(b.Close(), CopyHouse(b.Template, b.place.Path))
}

// found holds the ceremony. The clock stands at noon, so that no window of a limit ends
// meanwhile.
func (b *builder) found(ctx context.Context) error {
	noon := time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour)
	public, shares, err := custody.Make(custody.Scheme{Threshold: 2, Shares: 3})
	if err != nil {
		return err
	}
	b.Escrow, b.Shares, b.token = public, shares, memory.New()
	b.place = Place{Path: filepath.Join(b.dir, "building.db"), Token: b.token, Escrow: public, Clock: NewClock(noon)}
	s, err := sqlite.Open(ctx, sqlite.Config{Path: b.place.Path})
	if err != nil {
		return err
	}
	pinned, err := keylife.Ceremony(ctx, keylife.Backed{Token: b.token, Recipient: public}, Domain, noon)
	if err == nil {
		pinned.Policy = store.Policy{Version: 1, Document: policy.Default(), ActivatedAt: noon}
		err = Found(ctx, Founding{Store: s, Token: b.token, Trust: pinned, Anchor: AnchorOf(b.place.Path)})
	}
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	return b.reopen(ctx)
}

// Founding is what a store is founded with.
type Founding struct {
	Store  store.Store
	Token  hsm.Token
	Trust  store.Trust
	Anchor string // file of it
}

// Found does what `countersignd init` does after the ceremony.
func Found(ctx context.Context, f Founding) error {
	settings, err := keyring.ParseSettings(f.Trust.Settings)
	if err != nil {
		return err
	}
	first, err := chain.Anchor(settings)
	if err != nil {
		return err
	}
	at, err := anchor.Create(f.Anchor, first)
	if err != nil {
		return err
	}
	seals := store.NewSeals(nil)
	if err := keyuse.SealKeys(ctx, f.Token, f.Trust.Keys, seals); err != nil {
		return err
	}
	if err := f.Store.Unseal(ctx, seals, at); err != nil {
		return err
	}
	return f.Store.AddTrust(ctx, f.Trust, audit.NewRecord(audit.KindCeremony, "trust", nil))
}

func (b *builder) reopen(ctx context.Context) (err error) {
	if b.House, err = Open(ctx, b.place); err != nil {
		return err
	}
	b.Root = b.Keys.Root()
	return b.follow()
}

// follow takes the trust document of now as every honest party does.
func (b *builder) follow() (err error) {
	if b.Genuine, err = b.Verify(b.Hash()); err != nil {
		return err
	}
	for _, use := range []trust.Use{trust.UseDecision, trust.UseClientCA} {
		for _, cert := range b.Genuine.KeyCerts(use) {
			if !contains(b.Certs, cert) {
				b.Certs = append(b.Certs, cert)
			}
		}
	}
	for _, p := range b.Phones {
		p.Trust = b.Genuine
	}
	return nil
}

func contains(all [][]byte, one []byte) bool {
	for _, b := range all {
		if bytes.Equal(b, one) {
			return true
		}
	}
	return false
}

// snapshot keeps the database as it is now.
func (b *builder) snapshot(ctx context.Context) {
	path := filepath.Join(b.dir, fmt.Sprintf("earlier-%d.db", len(b.Earlier)))
	b.Earlier = append(b.Earlier, path)
	harness.Do(errors.Join(b.Close(), CopyHouse(path, b.place.Path)))
	harness.Do(b.reopen(ctx))
}

// rotate rotates what goes to phones, what signs and what seals, once each.
func (b *builder) rotate(ctx context.Context) {
	for _, name := range []string{keyring.KEM, keyring.Decision, keyring.MAC} {
		for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate} {
			b.place.Clock.Advance(time.Second)
			harness.Must(b.Appliance.Keys.Take(ctx, keyplan.Step{Verb: verb, Name: name}))
		}
	}
	b.place.Clock.Advance(time.Second)
	harness.Must(b.Appliance.Keys.Take(ctx, keyplan.Step{Verb: keyplan.Retire, Name: keyring.KEM, Version: 1, Early: true}))
	done := func() bool { r := b.Appliance.Keys.Renewal(); return r.Total > 0 && r.Left == 0 && !r.Running }
	harness.Do(errors.Join(b.Work(ctx, done), b.follow()))
}

// backUp makes the files that an attacker could change on their way. It spends an approval, and leaves
// one that is granted.
func (b *builder) backUp(ctx context.Context) {
	harness.Do(b.Recovery.BackUpKeys(ctx, recovery.BackUp{}, func(made recovery.KeyBackup) error {
		b.Backup = made.File
		return nil
	}))
	again := change.Draft{Kind: policy.KeyBackup, Parameters: change.Parameters{"partial": false}}
	b.Changes["granted"] = harness.Must(b.Requests.Ask(ctx, again))
	harness.Must(b.signed(ctx, b.Changes["granted"]))
	harness.Do(b.Recovery.CopyStore(ctx, 0, func(c recovery.StoreCopy) error {
		b.Vouched = c.Statement
		return nil
	}))
}
