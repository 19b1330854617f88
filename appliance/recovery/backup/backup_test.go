package backup_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/recovery/custody"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/failover"
	"countersign/hsm/memory"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// house is the keys of an appliance: a token in memory and a store on disk.
type house struct {
	*testing.T
	*keyuse.Keys
	token  hsm.Token
	store  store.Store
	shares []custody.Share
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{T: t}
	public, shares, err := custody.Make(custody.Scheme{Threshold: 2, Shares: 3})
	if err != nil {
		t.Fatal(err)
	}
	h.shares = shares
	h.token = keylife.Backed{Token: memory.New(), Recipient: public}
	pinned, err := keylife.Ceremony(t.Context(), h.token, "test.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h.store = openStore(t, filepath.Join(t.TempDir(), "s.db"))
	pinned.Policy = store.Policy{Version: 1, Document: []byte("one")}
	h.must(found(t, h.token, h.store, pinned))
	h.Keys, err = keyuse.Load(t.Context(), h.token, h.store, keyuse.Pins{Root: protocol.PublicKey(pinned.Keys[0].Public)})
	h.must(err)
	return h
}

// found unseals an empty store and stores the trust.
func found(t *testing.T, token hsm.Token, s store.Store, pinned store.Trust) error {
	t.Helper()
	seals := store.NewSeals(nil)
	if err := errors.Join(keyuse.SealKeys(t.Context(), token, pinned.Keys, seals), s.Unseal(t.Context(), seals, nil)); err != nil {
		return err
	}
	return s.AddTrust(t.Context(), pinned, note())
}

func note() audit.Record {
	return audit.NewRecord(audit.KindKeys, "test", map[string]any{"event": "x"})
}

func openStore(t *testing.T, path string) store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (h *house) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *house) state() backup.State {
	h.Helper()
	state, err := backup.StateOf(h.Context(), h.store)
	h.must(err)
	return state
}

// written returns the file of a backup.
func (h *house) written() []byte {
	h.Helper()
	file, err := backup.Write(h.Context(), h, backup.NewDocument(h.state(), backup.Point{}, time.Now()), time.Now())
	h.must(err)
	return file
}

// known returns root 1 as the known root.
func (h *house) known() backup.Known {
	h.Helper()
	first, err := trust.VerifyRootCert(h.Settings().RootCerts[0])
	h.must(err)
	return backup.Known{Root: first.Key}
}

func (h *house) read(file []byte) backup.Backup {
	h.Helper()
	b, err := backup.Read(file, h.known())
	h.must(err)
	return b
}

func (h *house) step(s keyplan.Step) {
	h.Helper()
	plan, err := keyplan.New(h.Ring(), s, time.Now())
	h.must(err)
	change, err := keylife.Carry(h.Context(), h.Keys, plan, "first")
	h.must(err)
	h.must(h.store.ChangeKeys(h.Context(), change, note()))
	h.must(h.Reload(h.Context(), h.store))
}

// restorer returns a restorer for a fresh token, with the first two shares.
func (h *house) restorer(state backup.State, token hsm.Token) backup.Restorer {
	h.Helper()
	covered, err := backup.Cover(state.Keys)
	h.must(err)
	private, err := custody.Combine(h.shares[:2])
	h.must(err)
	return backup.Restorer{Token: token, Items: covered.Items, Keys: []*ecdh.PrivateKey{private}, Marker: backup.NewMarker()}
}

// A backup from before and a database from after some rotations, or the reverse, are
// merged and restored onto a fresh token, where every key works as before.
func TestRestore(t *testing.T) {
	h := newHouse(t)
	h.step(keyplan.Step{Verb: keyplan.Rotate, Name: keyring.KEM})
	h.step(keyplan.Step{Verb: keyplan.Activate, Name: keyring.KEM})
	early := h.state()
	h.step(keyplan.Step{Verb: keyplan.Rotate, Name: keyring.Root})
	h.step(keyplan.Step{Verb: keyplan.Activate, Name: keyring.Root})
	for range 2 {
		h.step(keyplan.Step{Verb: keyplan.Rotate, Name: keyring.MAC})
		h.step(keyplan.Step{Verb: keyplan.Activate, Name: keyring.MAC})
	}
	late := h.read(h.written()).State
	for name, states := range map[string][2]backup.State{"backup newer": {early, late}, "database newer": {late, early}} {
		t.Run(name, func(t *testing.T) { h.comesBack(t, states[0], states[1]) })
	}
}

func (h *house) comesBack(t *testing.T, database, document backup.State) {
	merged, err := backup.Merge(database, document)
	if err != nil || len(merged.Missing) > 0 {
		t.Fatalf("%v, without a copy: %v", err, backup.Labels(merged.Missing))
	}
	fresh := memory.New()
	r := h.restorer(merged.State, fresh)
	if err := errors.Join(r.Check(), r.Sweep(t.Context()), r.Run(t.Context()), r.Done(t.Context())); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, filepath.Join(t.TempDir(), "s.db"))
	seals := store.NewSeals(nil)
	err = errors.Join(
		found(t, fresh, s, store.Trust{Keys: database.Keys, Settings: database.Settings.Values(), Policy: database.Policy}),
		keyuse.Unseal(t.Context(), fresh, s, seals, keyuse.Pins{Root: h.known().Root}),
		keyuse.SealKeys(t.Context(), fresh, merged.Keys, seals),
		s.Recover(t.Context(), merged.Recovered("fresh", time.Now()), note()),
	)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keyuse.Load(t.Context(), fresh, s, keyuse.Pins{Root: h.Root()})
	if err != nil {
		t.Fatal(err)
	}
	if err := keylife.SelfTest(t.Context(), ring, time.Now()); err != nil {
		t.Error(err)
	}
	if got := len(ring.Ring().Keys()); got != len(h.Ring().Keys()) || ring.Root() != h.Root() || ring.Settings().HandleEpoch == h.Settings().HandleEpoch {
		t.Errorf("%d key versions, root %s; want %d, %s", got, ring.Root(), len(h.Ring().Keys()), h.Root())
	}
	for _, k := range ring.Ring().Keys() {
		if k.Origin != store.Restored || !slices.Equal(k.Tokens, []string{"fresh"}) || !k.OnToken {
			t.Errorf("%s@%d: origin %s, tokens %v", k.Name, k.Version, k.Origin, k.Tokens)
		}
	}
	there, err := fresh.Keys(t.Context())
	if err != nil || len(there) != len(r.Items) {
		t.Errorf("%d keys on the token, want %d: %v", len(there), len(r.Items), err)
	}
	if err := r.Sweep(t.Context()); !errors.Is(err, backup.ErrTokenUsed) {
		t.Errorf("a second restore: %v", err)
	}
	if before, after := h.mac(t, h.Keys), h.mac(t, ring); !bytes.Equal(before, after) {
		t.Error("mac is another key")
	}
}

// mac returns a MAC that only the same mac key makes.
func (h *house) mac(t *testing.T, ring *keyuse.Keys) []byte {
	t.Helper()
	key, err := ring.Current(keyring.MAC, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mac, err := ring.MAC(t.Context(), key, []byte("OA1 test"))
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// No byte of a backup can be changed.
func TestTampered(t *testing.T) {
	h := newHouse(t)
	file := h.written()
	for i := 0; i < len(file); i += 1 + i%13 {
		bad := bytes.Clone(file)
		bad[i] ^= 1
		if _, err := backup.Read(bad, h.known()); !errors.Is(err, backup.ErrFile) {
			t.Fatalf("byte %d of %d: %v", i, len(file), err)
		}
	}
	for _, bad := range [][]byte{nil, file[:len(file)-1], append(bytes.Clone(file), 0)} {
		if _, err := backup.Read(bad, h.known()); !errors.Is(err, backup.ErrFile) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

// The statement of a database is valid only for the appliance that made it, and is not a
// backup.
func TestVouched(t *testing.T) {
	h, other := newHouse(t), newHouse(t)
	b := h.read(h.written())
	want := backup.Copy{SHA256: [32]byte{1}, Size: 7, Point: backup.Point{Sequence: 3}}
	file, err := backup.Vouch(t.Context(), h, want, time.Now())
	h.must(err)
	if got, err := b.Vouched(file); err != nil || got.Copy != want {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := backup.Read(file, h.known()); !errors.Is(err, backup.ErrFile) {
		t.Errorf("read as a backup: %v", err)
	}
	if _, err := b.Vouched(h.written()); !errors.Is(err, backup.ErrFile) {
		t.Errorf("a backup read as a statement: %v", err)
	}
	foreign, err := backup.Vouch(t.Context(), other, want, time.Now())
	h.must(err)
	if _, err := b.Vouched(foreign); !errors.Is(err, backup.ErrOther) {
		t.Errorf("of another appliance: %v", err)
	}
	if _, err := backup.Merge(h.state(), other.state()); !errors.Is(err, backup.ErrOther) {
		t.Errorf("merged with another appliance: %v", err)
	}
	both, err := backup.Merge(h.state(), h.state())
	h.must(err)
	if !slices.IsSortedFunc(both.Keys, func(a, b store.Key) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	}) {
		t.Error("the merged keys are in no order")
	}
	one := h.state()
	one.Keys = slices.Clone(one.Keys)
	i := slices.IndexFunc(one.Keys, func(k store.Key) bool { return k.Name == keyring.MAC })
	one.Keys[i].ID[0] ^= 1
	if _, err := backup.Merge(h.state(), one); !errors.Is(err, backup.ErrOther) {
		t.Errorf("merged, with another mac key under the same version: %v", err)
	}
}

// Superfluous or missing shares are reported before the token is touched.
func TestShares(t *testing.T) {
	h, other := newHouse(t), newHouse(t)
	r := h.restorer(h.state(), memory.New())
	stranger, err := custody.Combine(other.shares[1:])
	h.must(err)
	for _, keys := range [][]*ecdh.PrivateKey{nil, {stranger}, {r.Keys[0], stranger}} {
		bad := r
		bad.Keys = keys
		if err := bad.Check(); !errors.Is(err, backup.ErrShares) {
			t.Errorf("%d keys: %v", len(keys), err)
		}
	}
	h.must(r.Check())
}

// A damaged copy restores nothing and leaves nothing behind.
func TestBadCopy(t *testing.T) {
	h := newHouse(t)
	token := memory.New()
	r := h.restorer(h.state(), token)
	last := &r.Items[len(r.Items)-1]
	last.Sealed = bytes.Clone(last.Sealed)
	last.Sealed[len(last.Sealed)-1] ^= 1
	if err := r.Run(t.Context()); !errors.Is(err, backup.ErrCopy) {
		t.Errorf("%v, want ErrCopy", err)
	}
	h.empty(token)
}

func (h *house) empty(token hsm.Token) {
	h.Helper()
	there, err := token.Keys(h.Context())
	if err != nil || len(there) != 0 {
		h.Errorf("%d keys are left: %v", len(there), err)
	}
}

// failing fails after some restores, like a token that disappears.
type failing struct {
	hsm.Token
	left int
}

func (f *failing) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	if f.left--; f.left < 0 {
		return hsm.Key{}, hsm.ErrUnavailable
	}
	return f.Token.Restore(ctx, r)
}

// twice repeats each restore, as after the loss of a worker that had completed it.
type twice struct{ hsm.Token }

func (w twice) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	if _, err := w.Token.Restore(ctx, r); err != nil {
		return hsm.Key{}, err
	}
	return w.Token.Restore(ctx, r)
}

// sure is a token in memory as a member of a set.
type sure struct{ *memory.Token }

func (sure) Ready() bool     { return true }
func (sure) InFlight() int   { return 0 }
func (sure) Returns() uint64 { return 1 }

// TestTwoTokens: a restore puts its keys onto both tokens, and nothing else.
func TestTwoTokens(t *testing.T) {
	h := newHouse(t)
	first, second := memory.New(), memory.New()
	set := failover.New(failover.Config{
		Members: []failover.Member{{Name: "first", Token: sure{first}}, {Name: "second", Token: sure{second}}},
		Timeout: time.Second, Logger: hclog.NewNullLogger(),
	})
	r := h.restorer(h.state(), set)
	h.must(errors.Join(r.Sweep(t.Context()), r.Run(t.Context()), r.Done(t.Context())))
	for name, token := range map[string]hsm.Token{"first": first, "second": second} {
		there, err := token.Keys(t.Context())
		here := slices.DeleteFunc(there, func(k hsm.Key) bool { return k.Label == "transport@1" }) // the second's own
		if err != nil || len(here) != len(r.Items) {
			t.Errorf("%s token: %d keys, want %d: %v", name, len(here), len(r.Items), err)
		}
	}
	h.must(r.Undo(t.Context()))
	h.empty(set)
}

func TestDoneBefore(t *testing.T) {
	h := newHouse(t)
	token := memory.New()
	r := h.restorer(h.state(), twice{token})
	h.must(r.Run(t.Context()))
	if there, err := token.Keys(t.Context()); err != nil || len(there) != len(r.Items)+1 {
		t.Errorf("%d keys: %v", len(there), err)
	}
}

// An interrupted restore is undone, or swept before the next one.
func TestInterrupted(t *testing.T) {
	h := newHouse(t)
	token := memory.New()
	r := h.restorer(h.state(), token)
	cut := r
	cut.Token = &failing{token, 5}
	if err := cut.Run(t.Context()); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("%v, want unavailable", err)
	}
	h.empty(token)

	h.must(r.Run(t.Context()))
	h.must(r.Sweep(t.Context()))
	h.empty(token)
	h.must(r.Run(t.Context()))
	other := r
	other.Marker = backup.NewMarker()
	for range 2 { // during the restore and after it: the token equals the lost one
		if err := other.Sweep(t.Context()); !errors.Is(err, backup.ErrTokenUsed) {
			t.Errorf("by a restore that did not put it there: %v", err)
		}
		h.must(r.Done(t.Context()))
	}
	if err := r.Sweep(t.Context()); !errors.Is(err, backup.ErrTokenUsed) {
		t.Errorf("once it is done: %v", err)
	}
	h.must(r.Undo(t.Context()))
	h.empty(token)
	_, err := token.Generate(t.Context(), hsm.KeySpec{Label: "kem@1", Usage: hsm.DeriveP256})
	h.must(err)
	if err := r.Sweep(t.Context()); !errors.Is(err, backup.ErrTokenUsed) {
		t.Errorf("a key of the same label that is another: %v", err)
	}
}

// A key from before the backup key is reported, and recorded as destroyed.
func TestUncovered(t *testing.T) {
	h := newHouse(t)
	state := h.state()
	i := slices.IndexFunc(state.Keys, func(k store.Key) bool { return k.Name == keyring.KEM && k.Version == 4 })
	state.Keys[i].Sealed = nil
	m, err := backup.Merge(state, backup.State{Settings: state.Settings})
	h.must(err)
	if got := backup.Labels(m.Lost()); !slices.Equal(got, []string{"kem@4"}) {
		t.Errorf("lost: %v", got)
	}
	for _, k := range m.Recovered("fresh", time.Now()).Update {
		if gone := !k.DestroyedAt.IsZero(); gone != (k.Name == keyring.KEM && k.Version == 4) {
			t.Errorf("%s@%d destroyed: %v", k.Name, k.Version, gone)
		}
	}
}

// FuzzRead: Read accepts only signed files.
func FuzzRead(f *testing.F) {
	good, err := os.ReadFile("testdata/backup.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("\x85\x6akey backup\x40\x80\x40\x40"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if b, err := backup.Read(file, bornWith(t)); err == nil && !bytes.Equal(file, good) {
			t.Fatalf("taken: %v", b.Document)
		}
	})
}

// bornWith is root 1 of testdata/backup.bin.
func bornWith(t testing.TB) backup.Known {
	t.Helper()
	root, err := hex.DecodeString("02fb88236fedc02cef97fb027a25ed1e1a2be92e7521b5368657cbfa71d4ad07aa")
	if err != nil {
		t.Fatal(err)
	}
	return backup.Known{Root: protocol.PublicKey(root)}
}

// TestFile: files of this release stay readable.
func TestFile(t *testing.T) {
	file, err := os.ReadFile("testdata/backup.bin")
	if err != nil {
		t.Fatal(err)
	}
	b, err := backup.Read(file, bornWith(t))
	if err != nil {
		t.Fatal(err)
	}
	state := b.State
	c, err := backup.Cover(state.Keys)
	if err != nil || len(c.Items) != 24 || len(c.Missing) != 0 || len(c.Recipients()) != 1 || state.Settings.Domain != "test.example" {
		t.Errorf("%d keys, %d missing, domain %s: %v", len(c.Items), len(c.Missing), state.Settings.Domain, err)
	}
}
