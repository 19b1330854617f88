// Package hsmtest provides the test suite of the interface [hsm.Token], and what tests
// with a real token need: a SoftHSM token and the worker binary.
package hsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Run tests a token against the interface. It calls open once; the token may hold keys
// already, and Run removes those that it made. It skips, by name, operations for which the
// module has no mechanism. Each direct subtest is one capability of a module.
func Run(t *testing.T, open func(t *testing.T) hsm.Token) {
	s := &suite{token: open(t), prefix: rand.Text()[:8] + "-", made: map[hsm.Usage]hsm.Key{}}
	t.Cleanup(func() { s.clear(t) })
	for _, c := range []struct {
		capability string
		test       func(*testing.T)
	}{
		{"P-256", s.group("Sign", s.signs(hsm.SignP256, hsm.ES256))},
		{"P-384", s.group("Sign", s.signs(hsm.SignP384, hsm.ES384))},
		{"Ed25519", s.group("Sign", s.signs(hsm.SignEd25519, hsm.EdDSA))},
		{"PKCS1", s.rsa(hsm.RS256, hsm.RS384, hsm.RS512)},
		{"PSS", s.rsa(hsm.PS256, hsm.PS384, hsm.PS512)},
		{"ECDH", s.ecdh},
		{"HMAC", s.group("MAC", s.testMAC)},
		{"Password", s.password},
		{"Sealed", s.sealed},
		{"Certificate", s.group("Store", s.testCertificate)},
		{"Keys", s.rules},
	} {
		t.Run(c.capability, c.test)
	}
}

type suite struct {
	token  hsm.Token
	prefix string // of this run's labels
	made   map[hsm.Usage]hsm.Key
	kept   []byte // a secret that the WrapKey keeps
}

// clear destroys the keys of the suite.
func (s *suite) clear(t *testing.T) {
	keys, err := s.token.Keys(context.Background())
	if err != nil {
		t.Errorf("Keys after the suite: %v", err)
	}
	for _, k := range keys {
		if !strings.HasPrefix(k.Label, s.prefix) {
			continue
		}
		if err := s.token.Destroy(context.Background(), k.ID); err != nil {
			t.Errorf("Destroy of %s: %v", k.Label, err)
		}
	}
}

func (s *suite) group(name string, test func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) { t.Run(name, test) }
}

func (s *suite) ecdh(t *testing.T) {
	t.Run("Decap", s.testDecap)
	t.Run("Vectors", s.testDecapVectors)
	t.Run("Refused", s.testDecapRefused)
}

func (s *suite) password(t *testing.T) {
	t.Run("Import", s.testImport)
	t.Run("ImportRefused", s.testImportRefused)
	t.Run("MACWrappedRefused", s.testMACWrappedRefused)
	t.Run("Rewrap", s.testRewrap)
	t.Run("RewrapRefused", s.testRewrapRefused)
}

func (s *suite) rules(t *testing.T) {
	t.Run("Generate", s.testGenerate)
	t.Run("Exists", s.testExists)
	t.Run("BadSpec", s.testBadSpec)
	t.Run("List", s.testKeys)
	t.Run("Objects", s.testObjects)
	t.Run("BadInput", s.testBadInput)
	t.Run("WrongKey", s.testWrongKey)
	t.Run("Cancelled", s.testCancelled)
	t.Run("Concurrent", s.testConcurrent)
	t.Run("Destroy", s.testDestroy)
}

var lackingName = regexp.MustCompile(`CK[AMO]_[A-Z0-9_]+`)

// must skips the test if the module lacks a mechanism, and ends it on any other error.
func must(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, hsm.ErrUnsupported) {
		t.Skipf("module lacks %s: %v", strings.Join(lackingName.FindAllString(err.Error(), -1), ", "), err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// key returns the suite's key for a usage, made at its first use.
func (s *suite) key(t *testing.T, usage hsm.Usage) hsm.Key {
	t.Helper()
	if k, ok := s.made[usage]; ok {
		return k
	}
	s.made[usage] = s.generate(t, usage.String()+"@1", usage)
	return s.made[usage]
}

func (s *suite) generate(t *testing.T, label string, usage hsm.Usage) hsm.Key {
	t.Helper()
	spec := hsm.KeySpec{Label: s.prefix + label, Usage: usage}
	k, err := s.token.Generate(t.Context(), spec)
	must(t, err)
	if k.Label != spec.Label || k.Usage != usage || k.Sealed != nil {
		t.Fatalf("Generate(%v) = %v", spec, k)
	}
	return k
}

// ordinary are the usages for which the rules of all keys are tested.
var ordinary = []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.MACKey, hsm.WrapKey, hsm.SignEd25519, hsm.SignRSA2048}

// several returns the ordinary keys that the module supports.
func (s *suite) several(t *testing.T) (keys []hsm.Key) {
	t.Helper()
	for _, usage := range ordinary {
		k, ok := s.made[usage]
		if !ok {
			var err error
			k, err = s.token.Generate(t.Context(), hsm.KeySpec{Label: s.prefix + usage.String() + "@1", Usage: usage})
			if errors.Is(err, hsm.ErrUnsupported) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			s.made[usage] = k
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		t.Skip("module lacks all kinds of keys")
	}
	return keys
}

func (s *suite) testGenerate(t *testing.T) {
	for _, k := range s.several(t) {
		if !k.Usage.Pair() {
			if k.Public != nil || k.ID == (hsm.KeyID{}) {
				t.Errorf("%s: id %s, public %x", k.Label, k.ID, k.Public)
			}
			continue
		}
		public, id, err := check.ParsePublic(k.Public)
		if err != nil || !k.Usage.Fits(public) {
			t.Fatalf("%s: public key of %d bytes, %T: %v", k.Label, len(k.Public), public, err)
		}
		if sum := sha256.Sum256(k.Public); k.ID != id || !bytes.Equal(k.ID[:], sum[:20]) {
			t.Errorf("%s: id %s, want %x", k.Label, k.ID, sum[:20])
		}
	}
}

func (s *suite) testExists(t *testing.T) {
	keys := s.several(t)
	before := s.list(t)
	for _, k := range keys {
		_, err := s.token.Generate(t.Context(), hsm.KeySpec{Label: keys[0].Label, Usage: k.Usage})
		if !errors.Is(err, hsm.ErrExists) {
			t.Errorf("second %s with the label: %v, want ErrExists", k.Usage, err)
		}
	}
	if after := s.list(t); len(after) != len(before) {
		t.Errorf("%d keys before, %d after", len(before), len(after))
	}
}

func (s *suite) testBadSpec(t *testing.T) {
	for _, spec := range []hsm.KeySpec{
		{Label: "", Usage: hsm.SignP256},
		{Label: strings.Repeat("x", 65), Usage: hsm.SignP256},
		{Label: "\xff", Usage: hsm.SignP256},
		{Label: "unknown", Usage: 0},
		{Label: "unknown", Usage: hsm.SignRSA4096 + 1},
	} {
		if _, err := s.token.Generate(t.Context(), spec); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("Generate(%v): %v, want ErrInput", spec, err)
		}
	}
}

func (s *suite) list(t *testing.T) []hsm.Key {
	t.Helper()
	keys, err := s.token.Keys(t.Context())
	if err != nil {
		t.Fatalf("Keys: %v", err)
	}
	return keys
}

func (s *suite) listed(t *testing.T, want hsm.Key) bool {
	t.Helper()
	return slices.ContainsFunc(s.list(t), func(k hsm.Key) bool {
		return k.ID == want.ID && k.Label == want.Label && k.Usage == want.Usage && bytes.Equal(k.Public, want.Public)
	})
}

func (s *suite) testKeys(t *testing.T) {
	for _, want := range s.several(t) {
		if !s.listed(t, want) {
			t.Errorf("%v is not listed", want)
		}
	}
}

func (s *suite) testDestroy(t *testing.T) {
	for _, usage := range ordinary {
		t.Run(usage.String(), func(t *testing.T) {
			k := s.generate(t, "destroyed-"+usage.String(), usage)
			if err := s.token.Destroy(t.Context(), k.ID); err != nil {
				t.Fatal(err)
			}
			if s.listed(t, k) {
				t.Error("it is listed")
			}
			if err := s.token.Destroy(t.Context(), k.ID); !errors.Is(err, hsm.ErrKey) {
				t.Errorf("a second time: %v, want ErrKey", err)
			}
			if again := s.generate(t, "destroyed-"+usage.String(), usage); again.ID == k.ID {
				t.Error("the same key again")
			}
		})
	}
}
