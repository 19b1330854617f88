package keylife_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"

	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// registry is the key registry of one ceremony.
type registry struct{ trust store.Trust }

func (r registry) ListKeys(context.Context) ([]store.Key, error) { return r.trust.Keys, nil }
func (r registry) Settings(context.Context) (map[string][]byte, error) {
	return r.trust.Settings, nil
}

func (r registry) AddTrust(context.Context, store.Trust, audit.Record) error {
	return errors.New("not part of these tests")
}

func (r registry) ChangeKeys(context.Context, store.KeyChange, audit.Record) error {
	return errors.New("not part of these tests")
}

// pinned pins the first root of a ceremony.
func pinned(trusted store.Trust) keyuse.Pins {
	return keyuse.Pins{Root: protocol.PublicKey(trusted.Keys[0].Public)}
}

func ceremony(t *testing.T, now time.Time) (*memory.Token, registry) {
	t.Helper()
	token := memory.New()
	trusted, err := keylife.Ceremony(t.Context(), token, "test.example", now)
	if err != nil {
		t.Fatal(err)
	}
	return token, registry{trusted}
}

func load(t *testing.T, now time.Time) *keyuse.Keys {
	t.Helper()
	token, r := ceremony(t, now)
	ring, err := keyuse.Load(t.Context(), token, r, pinned(r.trust))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// TestTrustChain: a phone that knows only the root's hash accepts the certificates of the
// ceremony, now and four kem epochs later.
func TestTrustChain(t *testing.T) {
	now := time.Now()
	ring := load(t, now)
	for days, epoch := range map[int]uint64{0: 1, 100: 2, 200: 3, 300: 4} {
		then := now.Add(time.Duration(days) * 24 * time.Hour)
		trusted, err := ring.TrustDocument(then).Resolve(ring.Root().RootHash(), uint64(then.Unix()))
		if err != nil {
			t.Fatal(err)
		}
		kem, ok := trusted.Key(trust.UseKEM)
		if !ok || kem.Epoch != epoch {
			t.Errorf("after %d days: kem epoch %d, want %d", days, kem.Epoch, epoch)
		}
		current, err := ring.Current(keyring.KEM, then)
		if err != nil || current.Version != epoch {
			t.Errorf("after %d days: current version %d, %v", days, current.Version, err)
		}
	}
	if _, err := ring.Current(keyring.KEM, now.Add(400*24*time.Hour)); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("after the last epoch: %v, want no key", err)
	}
}

// TestRecipientGrace: a kem epoch is accepted for 30 days after its end and no longer.
func TestRecipientGrace(t *testing.T) {
	now := time.Now()
	ring := load(t, now)
	for days, want := range map[int]bool{0: true, 89: true, 118: true, 120: false} {
		_, held := ring.Recipient(t.Context(), 1, now.Add(time.Duration(days)*24*time.Hour))
		if held != want {
			t.Errorf("epoch 1 after %d days: held %v, want %v", days, held, want)
		}
	}
	if _, held := ring.Recipient(t.Context(), 63, now); held {
		t.Error("epoch 63 is held")
	}
}

// TestLoadMissing: a key that is in the registry and not on the token is an outage.
func TestLoadMissing(t *testing.T) {
	_, r := ceremony(t, time.Now())
	if _, err := keyuse.Load(t.Context(), memory.New(), r, pinned(r.trust)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("%v, want unavailable", err)
	}
	empty := registry{}
	if _, err := keyuse.Load(t.Context(), memory.New(), empty, pinned(r.trust)); !errors.Is(err, keyring.ErrNotInitialized) {
		t.Errorf("an empty registry: %v", err)
	}
}

// TestLoadOld: a store without handle epoch is recognized as old, and a truncated epoch
// is an error.
func TestLoadOld(t *testing.T) {
	for _, c := range []struct {
		epoch []byte
		want  error
	}{{nil, keyuse.ErrOldStore}, {make([]byte, 16), keyuse.ErrOldStore}, {make([]byte, 15), keyring.ErrNotInitialized}} {
		token, r := ceremony(t, time.Now())
		r.trust.Settings["handle_epoch"] = c.epoch
		if _, err := keyuse.Load(t.Context(), token, r, pinned(r.trust)); !errors.Is(err, c.want) {
			t.Errorf("handle epoch %x: %v, want %v", c.epoch, err, c.want)
		}
	}
}

// TestStoredAuthorities: the token holds the certificate of every ca epoch.
func TestStoredAuthorities(t *testing.T) {
	now := time.Now()
	token, r := ceremony(t, now)
	ring, err := keyuse.Load(t.Context(), token, r, pinned(r.trust))
	if err != nil {
		t.Fatal(err)
	}
	want, err := ring.Authorities(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := token.Certificates(t.Context())
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d certificates, %v; want %d", len(got), err, len(want))
	}
	for i, c := range got {
		cert, err := x509.ParseCertificate(c.DER)
		known := slices.ContainsFunc(want, func(w *x509.Certificate) bool {
			return w.SerialNumber.Int64() == int64(i+1) && cert != nil && cert.CheckSignatureFrom(w) == nil
		})
		if err != nil || c.Label != keyring.Label(keyring.CA, uint64(i+1)) || !known {
			t.Errorf("certificate %s of key %s, %v", c.Label, c.Key, err)
		}
	}
}

func TestCeremonyTwice(t *testing.T) {
	token, _ := ceremony(t, time.Now())
	if _, err := keylife.Ceremony(t.Context(), token, "test.example", time.Now()); !errors.Is(err, hsm.ErrExists) {
		t.Errorf("second ceremony: %v, want exists", err)
	}
	for _, domain := range []string{"", "Upper.example", "a b", "a/b"} {
		if _, err := keylife.Ceremony(t.Context(), memory.New(), domain, time.Now()); err == nil {
			t.Errorf("trust domain %q was taken", domain)
		}
	}
}

// liar signs with another key, as a broken token may.
type liar struct{ hsm.Token }

func (l liar) Sign(_ context.Context, _ hsm.KeyID, _ hsm.Algorithm, digest []byte) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	r, s, err := ecdsa.Sign(rand.Reader, key, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

func TestCertificates(t *testing.T) {
	now := time.Now()
	ring := load(t, now)
	authorities, err := ring.Authorities(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, a := range authorities {
		pool.AddCert(a)
	}
	subject, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ring.ServerCert(t.Context(), subject.Public(), []string{"localhost", "127.0.0.1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	device, err := ring.DeviceCert(t.Context(), subject.Public(), ring.SPIFFEID("device", "gate"), now)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cert *x509.Certificate
		use  x509.ExtKeyUsage
		good bool
	}{
		{"server as server", server, x509.ExtKeyUsageServerAuth, true},
		{"server as client", server, x509.ExtKeyUsageClientAuth, false},
		{"device as client", device, x509.ExtKeyUsageClientAuth, true},
		{"device as server", device, x509.ExtKeyUsageServerAuth, false},
	} {
		_, err := c.cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{c.use}, CurrentTime: now})
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	ca, err := ring.Current(keyring.CA, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := trust.CheckServerCertificate(server, ca.Point, now); err != nil {
		t.Errorf("a phone refuses the server certificate: %v", err)
	}
	if device.URIs[0].String() != "spiffe://test.example/device/gate" {
		t.Errorf("SPIFFE ID %s", device.URIs[0])
	}
}
