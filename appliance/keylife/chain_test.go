package keylife_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"countersign/appliance/anchor"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyring/chain"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm/memory"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// mallory is an attacker's root key.
type mallory struct{ *ecdsa.PrivateKey }

func newMallory(t *testing.T) mallory {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return mallory{key}
}

func (m mallory) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, m.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

func (m mallory) point(t *testing.T) protocol.PublicKey {
	t.Helper()
	p, err := protocol.CompressKey(&m.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// takes puts the attacker's key into a row, with the matching id.
func (m mallory) takes(t *testing.T, k *store.Key) {
	t.Helper()
	p := m.point(t)
	spki, err := keyring.Key{Key: store.Key{Public: p[:]}}.SPKI()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	k.Public, k.ID = p[:], [20]byte(sum[:20])
}

func (m mallory) rootCert(t *testing.T, number uint64, next [32]byte) []byte {
	t.Helper()
	cert, err := trust.SignRootCert(t.Context(), m, trust.RootCert{Number: number, Key: m.point(t), NextHash: next})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

var useOf = map[string]trust.Use{
	"kem": trust.UseKEM, "decision": trust.UseDecision, "ca": trust.UseCA, "enrol": trust.UseEnrol, "client-ca": trust.UseClientCA,
}

// signs signs the KeyCert of a row.
func (m mallory) signs(t *testing.T, k *store.Key) {
	t.Helper()
	cert, err := trust.SignKeyCert(t.Context(), m, trust.KeyCert{
		Epoch: k.Version, Use: useOf[k.Name], Key: protocol.PublicKey(k.Public),
		NotBefore: uint64(k.NotBefore.Unix()), NotAfter: uint64(k.NotAfter.Unix()),
	})
	if err != nil {
		t.Fatal(err)
	}
	k.Cert = cert
}

// forged replaces all roots of a registry by an attacker's roots, which certify the keys
// on the token.
func (l *life) forged(trusted store.Trust) store.Trust {
	l.Helper()
	settings := l.parsed(trusted)
	var roots []mallory
	for range len(settings.RootCerts) + 1 {
		roots = append(roots, newMallory(l.T))
	}
	for i := range settings.RootCerts {
		next := roots[i+1].point(l.T)
		settings.NextRootHash = sha256.Sum256(next[:])
		settings.RootCerts[i] = roots[i].rootCert(l.T, uint64(i+1), settings.NextRootHash)
	}
	trusted.Keys = slices.DeleteFunc(trusted.Keys, func(k store.Key) bool { return k.Name == keyring.Root && int(k.Version) > len(roots) })
	for i := range trusted.Keys {
		switch k := &trusted.Keys[i]; {
		case k.Name == keyring.Root:
			roots[k.Version-1].takes(l.T, k)
			if k.Cert != nil {
				k.Cert = settings.RootCerts[k.Version-1]
			}
		case k.Cert != nil:
			roots[k.Root-1].signs(l.T, k)
		}
	}
	trusted.Settings = settings.Values()
	return trusted
}

func (l *life) parsed(trusted store.Trust) keyring.Settings {
	l.Helper()
	settings, err := keyring.ParseSettings(trusted.Settings)
	if err != nil {
		l.Fatal(err)
	}
	return settings
}

func cloned(t store.Trust) store.Trust {
	return store.Trust{Keys: slices.Clone(t.Keys), Settings: maps.Clone(t.Settings)}
}

// row returns a row for a test to change.
func row(t *testing.T, trusted store.Trust, name string, version uint64) *store.Key {
	t.Helper()
	for i := range trusted.Keys {
		if k := &trusted.Keys[i]; k.Name == name && k.Version == version {
			return k
		}
	}
	t.Fatalf("no row %s@%d", name, version)
	return nil
}

// TestForgedRegistry: a changed registry is not loaded, regardless of the change and of
// the pin.
func TestForgedRegistry(t *testing.T) {
	l := newLife(t)
	before := cloned(l.trust)
	l.must(keyplan.Rotate, "root")
	l.must(keyplan.Activate, "root")
	settings := l.parsed(l.trust)
	at, err := chain.Anchor(settings)
	if err != nil || at.Root != 2 || at.Key != l.Root() {
		t.Fatalf("anchor %+v, %v", at, err)
	}
	other := func(store.Trust) store.Trust { return newLife(t).trust }
	edit := func(name string, version uint64, change func(k *store.Key)) func(store.Trust) store.Trust {
		return func(trusted store.Trust) store.Trust {
			change(row(t, trusted, name, version))
			return trusted
		}
	}
	withRoots := func(change func(s *keyring.Settings)) func(store.Trust) store.Trust {
		return func(trusted store.Trust) store.Trust {
			s := l.parsed(trusted)
			s.RootCerts = slices.Clone(s.RootCerts)
			change(&s)
			trusted.Settings = s.Values()
			return trusted
		}
	}
	swap := func(a, b string, version, with uint64) func(store.Trust) store.Trust {
		return func(trusted store.Trust) store.Trust {
			k, o := row(t, trusted, a, version), row(t, trusted, b, with)
			k.Cert, o.Cert = o.Cert, k.Cert
			return trusted
		}
	}
	again := func(number uint64) []byte { // a certificate of a genuine root that never was in the chain
		cert, err := trust.SignRootCert(t.Context(), l.Signer(keyOf(l, "root", number)), trust.RootCert{
			Number: number, Key: keyOf(l, "root", number).Point, NextHash: settings.NextRootHash,
		})
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	for name, c := range map[string]struct {
		forge func(store.Trust) store.Trust
		err   error
	}{
		"roots of his own":          {l.forged, chain.ErrRoots},
		"another appliance's":       {other, chain.ErrRoots},
		"no root":                   {withRoots(func(s *keyring.Settings) { s.RootCerts = nil }), chain.ErrRoots},
		"first root is gone":        {withRoots(func(s *keyring.Settings) { s.RootCerts = s.RootCerts[1:] }), chain.ErrRoots},
		"roots in another order":    {withRoots(func(s *keyring.Settings) { slices.Reverse(s.RootCerts) }), chain.ErrRoots},
		"a root twice":              {withRoots(func(s *keyring.Settings) { s.RootCerts = append(s.RootCerts, s.RootCerts[1]) }), chain.ErrRoots},
		"no certificate":            {withRoots(func(s *keyring.Settings) { s.RootCerts[1] = []byte{1} }), chain.ErrRoots},
		"a root of his own follows": {withRoots(func(s *keyring.Settings) { s.RootCerts = append(s.RootCerts, newMallory(t).rootCert(t, 3, [32]byte{})) }), chain.ErrRoots},
		"a root of his own, twice":  {withRoots(func(s *keyring.Settings) { s.RootCerts[1] = newMallory(t).rootCert(t, 2, s.NextRootHash) }), chain.ErrRoots},
		"another next root":         {withRoots(func(s *keyring.Settings) { s.NextRootHash[0]++ }), chain.ErrRoots},
		"next root hash is short": {func(trusted store.Trust) store.Trust {
			trusted.Settings["next_root_hash"] = []byte{1}
			return trusted
		}, keyring.ErrNotInitialized},
		"next root hash is long": {func(trusted store.Trust) store.Trust {
			trusted.Settings["next_root_hash"] = append(bytes.Clone(trusted.Settings["next_root_hash"]), 0)
			return trusted
		}, keyring.ErrNotInitialized},

		"KeyCerts of two epochs swapped":   {swap("decision", "decision", 5, 6), chain.ErrRow},
		"KeyCerts of two uses swapped":     {swap("decision", "client-ca", 5, 5), chain.ErrRow},
		"KeyCert of the root before":       {swap("kem", "kem", 1, 5), chain.ErrRow},
		"KeyCert by a root of his own":     {edit("decision", 5, func(k *store.Key) { newMallory(t).signs(t, k) }), chain.ErrRow},
		"key of his own":                   {edit("decision", 5, func(k *store.Key) { newMallory(t).takes(t, k) }), chain.ErrRow},
		"key of his own, certified by him": {edit("decision", 5, func(k *store.Key) { m := newMallory(t); m.takes(t, k); m.signs(t, k) }), chain.ErrRow},
		"no KeyCert":                       {edit("decision", 5, func(k *store.Key) { k.Cert = nil }), chain.ErrRow},
		"no KeyCert and no root":           {edit("decision", 5, func(k *store.Key) { k.Cert, k.Root = nil, 0 }), chain.ErrRow},
		"another root":                     {edit("decision", 5, func(k *store.Key) { k.Root = 1 }), chain.ErrRow},
		"a root that is not there":         {edit("decision", 5, func(k *store.Key) { k.Root = 4 }), chain.ErrRow},
		"a root that certifies later":      {edit("decision", 5, func(k *store.Key) { k.Root = 3 }), chain.ErrRow},
		"another epoch":                    {edit("decision", 8, func(k *store.Key) { k.Version = 9 }), chain.ErrRow},
		"another use":                      {edit("decision", 8, func(k *store.Key) { k.Name, k.Version = "ca", 9 }), chain.ErrRow},
		"not-before":                       {edit("kem", 5, func(k *store.Key) { k.NotBefore = k.NotBefore.AddDate(0, 0, -1) }), chain.ErrRow},
		"not-after":                        {edit("kem", 5, func(k *store.Key) { k.NotAfter = k.NotAfter.AddDate(9, 0, 0) }), chain.ErrRow},
		"no not-after":                     {edit("kem", 5, func(k *store.Key) { k.NotAfter = k.NotAfter.AddDate(-5000, 0, 0) }), chain.ErrRow},
		"id of another key":                {edit("decision", 5, func(k *store.Key) { k.ID = keyOf(l, "client-ca", 5).ID }), chain.ErrRow},
		"public key is short":              {edit("decision", 5, func(k *store.Key) { k.Public = k.Public[:32] }), chain.ErrRow},
		"no public key":                    {edit("decision", 5, func(k *store.Key) { k.Public = nil }), chain.ErrRow},
		"mac with a certificate":           {edit("mac", 1, func(k *store.Key) { k.Cert, k.Root = keyOf(l, "kem", 5).Cert, 2 }), chain.ErrRow},

		"root row with a key of his own":       {edit("root", 2, func(k *store.Key) { newMallory(t).takes(t, k) }), chain.ErrRow},
		"row of the first root":                {edit("root", 1, func(k *store.Key) { newMallory(t).takes(t, k) }), chain.ErrRow},
		"row of the next root":                 {edit("root", 3, func(k *store.Key) { newMallory(t).takes(t, k) }), chain.ErrRow},
		"root row without certificate":         {edit("root", 2, func(k *store.Key) { k.Cert = nil }), chain.ErrRow},
		"root row with another certificate":    {edit("root", 2, func(k *store.Key) { k.Cert = again(2) }), chain.ErrRow},
		"first root with another's":            {edit("root", 1, func(k *store.Key) { k.Cert = again(2) }), chain.ErrRow},
		"next root with a certificate of his":  {edit("root", 3, func(k *store.Key) { k.Cert = newMallory(t).rootCert(t, 3, [32]byte{}) }), chain.ErrRow},
		"root row under another number":        {edit("root", 3, func(k *store.Key) { k.Version = 5 }), chain.ErrRow},
		"root row is gone":                     {edit("root", 2, func(k *store.Key) { k.Name = "stranger" }), chain.ErrRow},
		"a root of his own after the next one": {func(trusted store.Trust) store.Trust { return l.withRoot(trusted, 5) }, chain.ErrRow},
	} {
		for pin, pins := range map[string]keyuse.Pins{
			"anchor":     {Anchor: anchor.InMemory(at)},
			"first root": {Root: keyOf(l, "root", 1).Point},
			"both":       {Anchor: anchor.InMemory(at), Root: keyOf(l, "root", 2).Point},
		} {
			forged := registry{c.forge(cloned(l.trust))}
			if err := pins.Verify(claimsOf(t, forged)); !errors.Is(err, c.err) {
				t.Errorf("%s, held against %s: %v, want %v", name, pin, err, c.err)
			}
			if _, err := keyuse.Load(t.Context(), l.token, forged, pins); !errors.Is(err, c.err) {
				t.Errorf("%s, loaded against %s: %v, want %v", name, pin, err, c.err)
			}
			if pins.Anchor != nil && pins.Anchor.Current() != at {
				t.Errorf("%s moved the anchor to %+v", name, pins.Anchor.Current())
			}
		}
		if err := l.Reload(t.Context(), registry{c.forge(cloned(l.trust))}); !errors.Is(err, c.err) {
			t.Errorf("%s, while it is served: %v, want %v", name, err, c.err)
		}
	}
	for name, old := range map[string]store.Trust{"the registry of before": before, "forged from before": l.forged(cloned(before))} {
		if _, err := keyuse.Load(t.Context(), l.token, registry{old}, keyuse.Pins{Anchor: anchor.InMemory(at)}); !errors.Is(err, chain.ErrRoots) {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.Reload(t.Context(), registry{old}); !errors.Is(err, chain.ErrRoots) {
			t.Errorf("%s, while it is served: %v", name, err)
		}
	}
	if l.Root() != at.Key || len(l.TrustDocument(l.now).RootCerts) != 2 {
		t.Error("a registry that was refused is served")
	}
	if err := l.Reload(t.Context(), l); err != nil {
		t.Errorf("its own: %v", err)
	}
	otherCert := at
	otherCert.CertHash = sha256.Sum256(again(2))
	if err := (keyuse.Pins{Anchor: anchor.InMemory(otherCert)}).Verify(claimsOf(t, l)); !errors.Is(err, chain.ErrRoots) {
		t.Errorf("another certificate of the same root: %v", err)
	}
}

// withRoot adds an attacker's root.
func (l *life) withRoot(trusted store.Trust, number uint64) store.Trust {
	k := store.Key{Name: keyring.Root, Version: number, Revision: 1, CreatedAt: l.now}
	newMallory(l.T).takes(l.T, &k)
	trusted.Keys = append(trusted.Keys, k)
	return trusted
}

func keyOf(l *life, name string, version uint64) keyring.Key {
	l.Helper()
	k, ok := l.Ring().Find(name, version)
	if !ok {
		l.Fatalf("no key %s@%d", name, version)
	}
	return k
}

// TestPins: nothing is trusted without a pin; any root of the chain is enough; an anchor
// with fewer roots moves forward, and one with more refuses.
func TestPins(t *testing.T) {
	l := newLife(t)
	if _, err := keyuse.Load(t.Context(), l.token, l, keyuse.Pins{}); !errors.Is(err, chain.ErrUnpinned) {
		t.Errorf("no pin: %v", err)
	}
	path := filepath.Join(t.TempDir(), "anchor")
	open := func() *anchor.File {
		t.Helper()
		f, err := anchor.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if _, err := keyuse.Load(t.Context(), l.token, l, keyuse.Pins{Anchor: open()}); !errors.Is(err, chain.ErrUnpinned) {
		t.Errorf("no anchor yet: %v", err)
	}
	first := l.Root()
	if err := (keyuse.Pins{Anchor: open(), Root: first}).Verify(claimsOf(t, l)); err != nil {
		t.Fatal(err)
	}
	for number := uint64(1); number <= 3; number++ {
		if got := open().Current(); got.Root != number || got.Key != l.Root() {
			t.Errorf("anchor at root %d, %s; want %d, %s", got.Root, got.Key, number, l.Root())
		}
		l.must(keyplan.Rotate, "root")
		if err := (keyuse.Pins{Anchor: open()}).Verify(claimsOf(t, l)); err != nil || open().Current().Root != number {
			t.Errorf("root %d waits, and the anchor is at %d: %v", number+1, open().Current().Root, err)
		}
		l.must(keyplan.Activate, "root")
		for _, root := range []protocol.PublicKey{first, l.Root(), {}} {
			if _, err := keyuse.Load(t.Context(), l.token, l, keyuse.Pins{Anchor: open(), Root: root}); err != nil {
				t.Errorf("pinned %s: %v", root, err)
			}
		}
	}
	if _, err := keyuse.Load(t.Context(), l.token, l, keyuse.Pins{Anchor: open(), Root: newMallory(t).point(t)}); !errors.Is(err, chain.ErrRoots) {
		t.Errorf("another root is pinned beside the anchor: %v", err)
	}
	ahead := open().Current()
	ahead.Root++
	if err := (keyuse.Pins{Anchor: anchor.InMemory(ahead), Root: first}).Verify(claimsOf(t, l)); !errors.Is(err, chain.ErrRoots) {
		t.Errorf("a root fewer than the anchor knows: %v", err)
	}
}

// TestAnchoredFirst: a new root is not used before it is in the anchor.
func TestAnchoredFirst(t *testing.T) {
	l := newLife(t)
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := anchor.Open(filepath.Join(dir, "anchor"))
	if err == nil {
		l.Keys, err = keyuse.Load(t.Context(), l.token, l, keyuse.Pins{Anchor: file, Root: l.Root()})
	}
	if err != nil {
		t.Fatal(err)
	}
	first := l.Root()
	l.must(keyplan.Rotate, "root")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	p, err := keyplan.New(l.Ring(), keyplan.Step{Verb: keyplan.Activate, Name: keyring.Root}, l.now)
	if err != nil {
		t.Fatal(err)
	}
	c, err := keylife.Carry(t.Context(), l.Keys, p, "test")
	if err == nil {
		err = l.ChangeKeys(t.Context(), c, audit.Record{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Reload(t.Context(), l); err == nil || l.Root() != first {
		t.Errorf("root %s is used and not anchored: %v", l.Root(), err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if err := l.Reload(t.Context(), l); err != nil || l.Root() == first {
		t.Errorf("still root %s: %v", l.Root(), err)
	}
	if a, err := anchor.Read(filepath.Join(dir, "anchor")); err != nil || a.Root != 2 || a.Key != l.Root() {
		t.Errorf("anchor %+v, %v", a, err)
	}
}

// TestRootAfterTheNext: after a rotation was taken back, no root names the one that it
// created, so the next rotation uses it only if it is on the token.
func TestRootAfterTheNext(t *testing.T) {
	l := newLife(t)
	l.must(keyplan.Rotate, "root")
	l.must(keyplan.Retire, "root")
	l.load(hides{l.token, "root"})
	l.load(l.token)
	kept := cloned(l.trust)
	newMallory(t).takes(t, row(t, l.trust, "root", 3))
	l.load(l.token)
	if err := l.take(keyplan.Rotate, "root"); !errors.Is(err, keyplan.ErrRootAway) {
		t.Errorf("root 2 is to name a root 3 of his own: %v", err)
	}
	l.trust = kept
	l.load(l.token)
	l.must(keyplan.Rotate, "root")
	l.must(keyplan.Activate, "root")
	if l.Root() != keyOf(l, "root", 2).Point {
		t.Errorf("root %s", l.Root())
	}
}

// TestOwnCeremony: the registry of an attacker's own ceremony is not loaded, on the
// appliance's token or on his.
func TestOwnCeremony(t *testing.T) {
	l := newLife(t)
	token := memory.New()
	his, err := keylife.Ceremony(t.Context(), token, "test.example", l.now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyuse.Load(t.Context(), token, registry{his}, pinned(l.trust)); !errors.Is(err, chain.ErrRoots) {
		t.Errorf("%v, want ErrRoots", err)
	}
}

// claimsOf returns the claims of a registry.
func claimsOf(t *testing.T, r store.Keys) store.Claims {
	t.Helper()
	keys, err := r.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settings, err := r.Settings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return store.Claims{Founded: true, Keys: keys, Settings: settings}
}
