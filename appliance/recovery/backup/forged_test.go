package backup_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/trust"
)

func (h *house) vouched() []byte {
	h.Helper()
	point := backup.Point{Sequence: 3, At: time.Now().UnixMicro()}
	file, err := backup.Vouch(h.Context(), h, backup.Copy{SHA256: [32]byte{1}, Size: 7, Point: point}, time.Now())
	h.must(err)
	return file
}

func (h *house) rotate(s keyplan.Step) {
	h.Helper()
	s.Verb = keyplan.Rotate
	h.step(s)
	h.step(keyplan.Step{Verb: keyplan.Activate, Name: s.Name})
}

// signing returns a signed document of any state.
func (h *house) signing(state backup.State) []byte {
	h.Helper()
	file, err := backup.Write(h.Context(), h, backup.NewDocument(state, backup.Point{}, time.Now()), time.Now())
	h.must(err)
	return file
}

func root(n int, h *house) backup.Known {
	h.Helper()
	r, err := trust.VerifyRootCert(h.Settings().RootCerts[n-1])
	h.must(err)
	return backup.Known{Root: r.Key}
}

// posing signs with the keys of one house under the roots of another.
type posing struct {
	*house
	as keyring.Settings
}

func (p posing) Settings() keyring.Settings { return p.as }

// Genuine keys and trust signed under another root are refused, in backup and statement,
// and so is a signature that claims the genuine roots.
func TestForgedRoot(t *testing.T) {
	h, attacker := newHouse(t), newHouse(t)
	forged := attacker.signing(h.state())
	if _, err := backup.Read(forged, h.known()); !errors.Is(err, backup.ErrOther) {
		t.Errorf("a backup by another root: %v", err)
	}
	if _, err := backup.Read(forged, attacker.known()); !errors.Is(err, backup.ErrFile) {
		t.Errorf("root_certs that are not the chain: %v", err)
	}
	b := h.read(h.written())
	if _, err := b.Vouched(attacker.vouched()); !errors.Is(err, backup.ErrOther) {
		t.Errorf("a statement by another root: %v", err)
	}
	pose := posing{attacker, h.Settings()}
	file, err := backup.Write(t.Context(), pose, backup.NewDocument(h.state(), backup.Point{}, time.Now()), time.Now())
	h.must(err)
	if _, err := backup.Read(file, h.known()); !errors.Is(err, backup.ErrFile) {
		t.Errorf("a backup under genuine roots by another key: %v", err)
	}
	if file, err = backup.Vouch(t.Context(), pose, backup.Copy{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Vouched(file); !errors.Is(err, backup.ErrFile) {
		t.Errorf("a statement under genuine roots by another key: %v", err)
	}
}

// The genuine files are accepted under any root of the chain that signed them, the first
// and later ones, and not under a root that waits.
func TestGenuine(t *testing.T) {
	h := newHouse(t)
	early := h.written()
	for rotations := range 3 {
		file, statement := h.written(), h.vouched()
		for n := 1; n <= rotations+1; n++ {
			b, err := backup.Read(file, root(n, h))
			if err != nil {
				t.Fatalf("after %d rotations, under root %d: %v", rotations, n, err)
			}
			v, err := b.Vouched(statement)
			if err == nil {
				_, err = b.Join(v, h.state())
			}
			if err != nil {
				t.Errorf("the database after %d rotations, under root %d: %v", rotations, n, err)
			}
		}
		if rotations < 2 {
			h.rotate(keyplan.Step{Name: keyring.Root})
		}
	}
	// One chain is a prefix of the other.
	v, err := h.read(early).Vouched(h.vouched())
	h.must(err)
	if m, err := h.read(early).Join(v, h.state()); err != nil || len(m.Settings.RootCerts) != 3 {
		t.Errorf("an early backup with a late database: %d roots, %v", len(m.Settings.RootCerts), err)
	}
	if _, err := backup.Read(early, root(3, h)); !errors.Is(err, backup.ErrOther) {
		t.Errorf("an early backup under a root that it does not know: %v", err)
	}
	if _, err := backup.Read(early, root(1, h)); err != nil {
		t.Errorf("an early backup: %v", err)
	}
}

// Only the payload vouches for the roots before the known one.
func TestForgedPrefix(t *testing.T) {
	h := newHouse(t)
	h.rotate(keyplan.Step{Name: keyring.Root})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	h.must(err)
	public, err := protocol.CompressKey(&key.PublicKey)
	h.must(err)
	known := root(2, h)
	first, err := trust.SignRootCert(t.Context(), soft{key}, trust.RootCert{Number: 1, Key: public, NextHash: sha256.Sum256(known.Root[:])})
	h.must(err)
	for _, file := range [][]byte{h.written(), h.vouched()} {
		var parts []any
		h.must(cbor.Unmarshal(file, &parts))
		parts[2].([]any)[0] = first
		forged, err := cbor.Marshal(parts)
		h.must(err)
		if _, err := backup.Read(forged, known); !errors.Is(err, backup.ErrFile) {
			t.Errorf("a backup: %v", err)
		}
		b, err := backup.Read(h.written(), known)
		h.must(err)
		if _, err := b.Vouched(forged); err == nil {
			t.Error("a statement was taken")
		}
	}
}

type soft struct{ *ecdsa.PrivateKey }

func (s soft) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return sig, nil
}

// Files of two appliances do not belong together, although each is properly signed.
func TestMixed(t *testing.T) {
	h, other := newHouse(t), newHouse(t)
	b := h.read(h.written())
	v, err := b.Vouched(h.vouched())
	h.must(err)
	if _, err := b.Join(v, other.state()); !errors.Is(err, backup.ErrFile) {
		t.Errorf("a statement beside another's database: %v", err)
	}
	h.rotate(keyplan.Step{Name: keyring.Root})
	if _, err := b.Join(v, h.state()); !errors.Is(err, backup.ErrFile) {
		t.Errorf("a database whose roots are more than those that signed: %v", err)
	}
	if _, err := b.Alone(other.state(), time.Now()); !errors.Is(err, backup.ErrOther) {
		t.Errorf("another's database, unsigned: %v", err)
	}
}

// Each row must match its certificate, also in a signed document.
func TestForgedRows(t *testing.T) {
	h := newHouse(t)
	h.step(keyplan.Step{Verb: keyplan.Rotate, Name: keyring.Root}) // root 2 waits, root 3 is made
	row := func(s *backup.State, name string, version uint64) *store.Key {
		i := slices.IndexFunc(s.Keys, func(k store.Key) bool { return k.Name == name && k.Version == version })
		return &s.Keys[i]
	}
	swap := func(name string, version uint64) func(s *backup.State) {
		return func(s *backup.State) { k := row(s, name, version); k.Public = row(s, keyring.Enrol, 1).Public }
	}
	cases := map[string]func(s *backup.State){
		"public key of decision@1": swap(keyring.Decision, 1),
		"public key of root 1":     swap(keyring.Root, 1),
		"public key of root 2":     swap(keyring.Root, 2),
		"no root":                  func(s *backup.State) { s.Settings.RootCerts = nil },
		"hash of the next root":    func(s *backup.State) { s.Settings.NextRootHash[0] ^= 1 },
		"not-before":               func(s *backup.State) { k := row(s, keyring.KEM, 1); k.NotBefore = k.NotBefore.Add(time.Hour) },
		"not-after":                func(s *backup.State) { k := row(s, keyring.KEM, 1); k.NotAfter = k.NotAfter.Add(time.Hour) },
		"number of the root":       func(s *backup.State) { row(s, keyring.CA, 1).Root = 2 },
		"a root that is none":      func(s *backup.State) { row(s, keyring.CA, 1).Root = 9 },
		"another epoch's":          func(s *backup.State) { row(s, keyring.KEM, 1).Cert = row(s, keyring.KEM, 2).Cert },
		"another use's":            func(s *backup.State) { row(s, keyring.KEM, 1).Cert = row(s, keyring.CA, 1).Cert },
		"a certificate of mac":     func(s *backup.State) { row(s, keyring.MAC, 1).Cert = row(s, keyring.CA, 1).Cert },
		"a certificate of root 1":  func(s *backup.State) { row(s, keyring.Root, 1).Cert = row(s, keyring.Root, 2).Cert },
		"a certificate of root 3":  func(s *backup.State) { row(s, keyring.Root, 3).Cert = row(s, keyring.Root, 2).Cert },
		"a bit of a certificate": func(s *backup.State) {
			k := row(s, keyring.ClientCA, 2)
			k.Cert = bytes.Clone(k.Cert)
			k.Cert[len(k.Cert)-1] ^= 1
		},
	}
	genuine := h.read(h.written())
	v, err := genuine.Vouched(h.vouched())
	h.must(err)
	for name, forge := range cases {
		state := h.state()
		forge(&state)
		if _, err := backup.Read(h.signing(state), h.known()); !errors.Is(err, backup.ErrFile) {
			t.Errorf("%s in a backup: %v", name, err)
		}
		if _, err := genuine.Join(v, state); !errors.Is(err, backup.ErrFile) {
			t.Errorf("%s in a database: %v", name, err)
		}
	}
}

// A compromised decision key vouches for no file.
func TestRuledOut(t *testing.T) {
	for name, step := range map[string]func(*house){
		"ruled out":   func(h *house) { h.rotate(keyplan.Step{Name: keyring.Decision, Compromised: true}) },
		"compromised": func(h *house) { h.compromised() },
	} {
		t.Run(name, func(t *testing.T) { h := newHouse(t); h.ruledOut(func() { step(h) }) })
	}
}

// TestOtherRuledOut: an epoch of another key that rules earlier ones out says nothing about decision.
func TestOtherRuledOut(t *testing.T) {
	h := newHouse(t)
	for range 2 {
		h.rotate(keyplan.Step{Name: keyring.KEM, Compromised: true})
	}
	b := h.read(h.written())
	v, err := b.Vouched(h.vouched())
	h.must(err)
	if _, err := b.Join(v, h.state()); err != nil || b.By.Epoch != 1 {
		t.Errorf("by decision epoch %d: %v", b.By.Epoch, err)
	}
}

// compromised replaces decision@1 and retires it as compromised.
func (h *house) compromised() {
	h.rotate(keyplan.Step{Name: keyring.Decision})
	h.step(keyplan.Step{Verb: keyplan.Retire, Name: keyring.Decision, Version: 1, Compromised: true})
}

func (h *house) ruledOut(step func()) {
	h.Helper()
	oldFile, oldStatement, oldState := h.written(), h.vouched(), h.state()
	step()
	newFile, newStatement, newState := h.written(), h.vouched(), h.state()
	for _, c := range []struct {
		what            string
		file, statement []byte
		database        backup.State
		want            error
	}{
		{"both of before", oldFile, oldStatement, oldState, nil},
		{"both of after", newFile, newStatement, newState, nil},
		{"the backup of before", oldFile, newStatement, newState, backup.ErrRuledOut},
		{"the database of before", newFile, oldStatement, oldState, backup.ErrRuledOut},
	} {
		b := h.read(c.file)
		v, err := b.Vouched(c.statement)
		h.must(err)
		if _, err := b.Join(v, c.database); !errors.Is(err, c.want) {
			h.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
	if _, err := h.read(oldFile).Alone(newState, time.Now()); !errors.Is(err, backup.ErrRuledOut) {
		h.Errorf("the backup of before, with an unsigned database: %v", err)
	}
	known := h.known()
	known.MinEpoch = 2
	if _, err := backup.Read(oldFile, known); !errors.Is(err, backup.ErrRuledOut) {
		h.Errorf("a backup below the least epoch: %v", err)
	}
	b, err := backup.Read(newFile, known)
	h.must(err)
	if _, err := b.Vouched(oldStatement); !errors.Is(err, backup.ErrRuledOut) {
		h.Errorf("a statement below the least epoch: %v", err)
	}
	if v, err := b.Vouched(newStatement); err != nil || v.By.Epoch < 2 || b.By.Epoch < 2 {
		h.Errorf("signed by epochs %d and %d: %v", b.By.Epoch, v.By.Epoch, err)
	}
}

// A KeyCert rules out earlier epochs only once it is in use: until then the earlier epoch
// may sign.
func TestRulesOutInUse(t *testing.T) {
	h := newHouse(t)
	old := h.vouched()
	h.step(keyplan.Step{Verb: keyplan.Rotate, Name: keyring.Decision, Compromised: true})
	b := h.read(h.written())
	v, err := b.Vouched(h.vouched())
	h.must(err)
	if _, err := b.Join(v, h.state()); err != nil || b.By.Epoch != 1 {
		t.Errorf("before it is in use, by epoch %d: %v", b.By.Epoch, err)
	}
	state := h.state()
	h.step(keyplan.Step{Verb: keyplan.Activate, Name: keyring.Decision})
	after := h.state()
	for i := range after.Keys {
		after.Keys[i].CompromisedAt = time.Time{}
	}
	b = h.read(h.signing(after))
	v, err = b.Vouched(old)
	h.must(err)
	if _, err := b.Join(v, state); !errors.Is(err, backup.ErrRuledOut) {
		t.Errorf("once it is in use: %v", err)
	}
}

// With an unsigned database, keys, trust and policy are the backup's; the database can
// only take keys away.
func TestOverrule(t *testing.T) {
	h := newHouse(t)
	b := h.read(h.written())
	if m, err := b.Alone(h.state(), time.Now()); err != nil || len(m.Ignored) != 0 || m.Policy.Version != b.State.Policy.Version {
		t.Errorf("of a database as in the backup %v were ignored, policy %d: %v", m.Ignored, m.Policy.Version, err)
	}
	label := func(k store.Key) string { return keyring.Label(k.Name, k.Version) }
	want := map[string]store.Key{}
	for _, k := range b.State.Keys {
		want[label(k)] = k
	}
	database := h.state()
	database.Policy = store.Policy{Version: 9, Document: []byte("everything is level 1")}
	database.Settings.RootCerts, database.Settings.NextRootHash = nil, [32]byte{1}
	for i := range database.Keys {
		k := &database.Keys[i]
		k.Cert, k.Root, k.ActivatedAt, k.Revision = nil, 7, time.Now(), 8
		if label(*k) == "decision@2" {
			k.CompromisedAt = time.Now()
		}
		if label(*k) == "kem@4" {
			k.DestroyedAt = time.Now()
		}
	}
	database.Keys = append(database.Keys, store.Key{Name: keyring.MAC, Version: 2, ID: [20]byte{2}, Sealed: []byte("x"), SealedFor: make([]byte, 33), Revision: 1})
	m, err := b.Alone(database, time.Now())
	h.must(err)
	if m.Policy.Version != 10 || string(m.Policy.Document) != "one" || !bytes.Equal(m.Settings.RootCerts[0], b.State.Settings.RootCerts[0]) {
		t.Errorf("policy %d %q", m.Policy.Version, m.Policy.Document)
	}
	for _, k := range m.Keys {
		doc, known := want[label(k)]
		switch label(k) {
		case "decision@2":
			known, k.CompromisedAt = !k.CompromisedAt.IsZero(), time.Time{}
		case "kem@4":
			known, k.DestroyedAt = !k.DestroyedAt.IsZero(), time.Time{}
		case "mac@2":
			if k.DestroyedAt.IsZero() {
				t.Error("a key that the backup does not know is no destroyed one")
			}
			continue
		}
		if !known || fmt.Sprint(k) != fmt.Sprint(doc) {
			t.Errorf("%s: %v, want %v", label(k), k, doc)
		}
	}
	if slices.ContainsFunc(m.Items, func(i backup.Item) bool { return i.ID == [20]byte{2} }) || len(m.Missing) > 0 {
		t.Errorf("restored: %v, missing: %v", len(m.Items), backup.Labels(m.Missing))
	}
	if len(m.Ignored) != len(database.Keys)+1 {
		t.Errorf("ignored: %v", m.Ignored)
	}
}

// A key that differs in the database, or a root that the backup lacks, means another
// history.
func TestOverruleOther(t *testing.T) {
	h := newHouse(t)
	b := h.read(h.written())
	i := slices.IndexFunc(b.State.Keys, func(k store.Key) bool { return k.Name == keyring.KEM })
	for name, change := range map[string]func(*store.Key){
		"id": func(k *store.Key) { k.ID[0] ^= 1 }, "public key": func(k *store.Key) { k.Public = b.State.Keys[i].Public },
		"copy": func(k *store.Key) { k.Sealed = []byte("x") }, "root": func(k *store.Key) { *k = store.Key{Name: keyring.Root, Version: 3} },
	} {
		bad := h.state()
		change(&bad.Keys[0])
		if _, err := b.Alone(bad, time.Now()); !errors.Is(err, backup.ErrOther) {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

// records is an audit log in memory.
type records []audit.Record

func (r records) Records(_ context.Context, after uint64, limit int) ([]audit.Record, error) {
	return r[after:min(int(after)+limit, len(r))], nil
}
func (r records) Append(context.Context, audit.Record) error { return errors.ErrUnsupported }
func (r records) Tally(context.Context) (store.Tally, error) {
	return store.Tally{}, errors.ErrUnsupported
}

// Ended finds the records of the last 30 days across pages.
func TestEnded(t *testing.T) {
	now := time.Now()
	var log records
	add := func(kind, name, event string, ago time.Duration) {
		r := audit.NewRecord(kind, kind+"/"+name, map[string]any{"event": event})
		r.Sequence, r.At = uint64(len(log)+1), now.Add(-ago)
		log = append(log, r)
	}
	const day = 24 * time.Hour
	add(audit.KindClients, "long-ago", "revoked", 31*day)
	add(audit.KindClients, "alice", "suspended", 29*day)
	for range 1200 {
		add(audit.KindOutcome, "x", "revoked", 20*day)
	}
	add(audit.KindDevices, "gate", "revoked", 10*day)
	add(audit.KindAdmins, "bob", "suspended", 9*day)
	add(audit.KindClients, "carol", "active", 8*day)
	add(audit.KindClients, "dora", "revoked", 0)
	point := store.Point{Sequence: uint64(len(log)), At: now}
	add(audit.KindClients, "after", "revoked", 0)
	got, err := backup.Ended(t.Context(), log, point)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range got {
		names = append(names, r.Subject)
	}
	if !slices.Equal(names, []string{"client/alice", "device/gate", "admin/bob", "client/dora"}) {
		t.Errorf("%v", names)
	}
	if none, err := backup.Ended(t.Context(), log, store.Point{}); err != nil || len(none) > 0 {
		t.Errorf("of an empty store: %v, %v", none, err)
	}
}
