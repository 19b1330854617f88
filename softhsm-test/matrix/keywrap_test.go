package matrix

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/pool"
	"countersign/softhsm-test/shim/shimtest"
)

// lacking puts a module without some mechanisms in the place of a token's module. The function that it
// returns gives them back.
func lacking(t *testing.T, k token, mechanisms string) (token, func()) {
	t.Helper()
	dir := t.TempDir()
	s, err := shimtest.New("../../bin", dir)
	if err != nil {
		t.Fatal(err)
	}
	mask := filepath.Join(dir, "lacking.mask")
	write := func(text string) {
		if err := os.WriteFile(mask, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("lacks " + mechanisms + "\n")
	if err := s.Set("set module " + k.library); err != nil {
		t.Fatal(err)
	}
	hsmtest.Worker(t) // go build has no mask
	for _, assignment := range append(s.Env(), "FAULTSHIM_MASK="+mask) {
		name, value, _ := strings.Cut(assignment, "=")
		t.Setenv(name, value)
	}
	k.library = s.Module
	return k, func() { write("# nothing\n") }
}

// TestOtherKeyWraps: a module without RFC 5649 keeps verifiers by another mechanism, checks them inside, and still does
// so when it learns RFC 5649.
func TestOtherKeyWraps(t *testing.T) {
	const rfc5649 = "CKM_AES_KEY_WRAP_PAD 0x210b"
	for _, c := range []struct {
		way    string
		of     module
		lacks  string
		length int
	}{
		{"key wrap: CKM_AES_KEY_WRAP (0x2109)", softHSM, rfc5649, 41},
		{"key wrap: CKM_AES_CBC_PAD (0x1085)", nss, rfc5649 + " CKM_AES_KEY_WRAP", 65}, // NSS 3.87 refuses CK_GCM_PARAMS
	} {
		t.Run(c.way, func(t *testing.T) {
			k, restore := lacking(t, c.of.setUp(t), c.lacks)
			opened := open(t, k)
			if got := opened.Ways(); !slices.Contains(got, c.way) || !slices.Contains(got, "import of verifiers: in the memory of hsm-worker") {
				t.Fatalf("%q", got)
			}
			kept := keeps(t, opened)
			if len(kept.wrapped) != c.length {
				t.Errorf("%d bytes are kept, want %d", len(kept.wrapped), c.length)
			}
			kept.check(t, opened)
			other := generate(t, opened, "wrap@2", hsm.WrapKey)
			moved, err := opened.Rewrap(t.Context(), hsm.Rewrap{From: kept.wrap, To: other.ID, Wrapped: kept.wrapped})
			if err != nil {
				t.Fatal(err)
			}
			secret{kept.plain, other.ID, moved}.check(t, opened)
			for _, bad := range [][]byte{kept.wrapped[2:], make([]byte, c.length), append(slices.Clone(kept.wrapped), 0)} {
				if _, err := opened.MACWrapped(t.Context(), kept.wrap, bad, nil); !errors.Is(err, hsm.ErrInput) {
					t.Errorf("%d bytes: %v, want ErrInput", len(bad), err)
				}
			}
			if _, err := opened.MACWrapped(t.Context(), kept.wrap, make([]byte, 40), nil); !errors.Is(err, hsm.ErrUnsupported) {
				t.Errorf("kept by RFC 5649: %v, want ErrUnsupported", err)
			}
			opened.Close()
			restore()
			again := open(t, k)
			if got := again.Ways(); slices.Contains(got, c.way) {
				t.Fatalf("it has learned nothing: %q", got)
			}
			kept.check(t, again)
		})
	}
}

// secret is a verifier that a wrap key keeps.
type secret struct {
	plain   []byte
	wrap    hsm.KeyID
	wrapped []byte
}

func generate(t *testing.T, opened *pool.Pool, label string, usage hsm.Usage) hsm.Key {
	t.Helper()
	k, err := opened.Generate(t.Context(), hsm.KeySpec{Label: label, Usage: usage})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// keeps imports a verifier.
func keeps(t *testing.T, opened *pool.Pool) secret {
	t.Helper()
	s := secret{plain: bytes.Repeat([]byte{7}, 32)}
	i := hsmtest.WrapFor(t, generate(t, opened, "enrol@1", hsm.DeriveP256), s.plain)
	s.wrap = generate(t, opened, "wrap@1", hsm.WrapKey).ID
	i.Wrap = s.wrap
	var err error
	if s.wrapped, err = opened.Import(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	return s
}

// check has the token make the MAC of the verifier.
func (s secret) check(t *testing.T, opened *pool.Pool) {
	t.Helper()
	mac := hmac.New(sha256.New, s.plain)
	mac.Write([]byte("x"))
	got, err := opened.MACWrapped(t.Context(), s.wrap, s.wrapped, []byte("x"))
	if err != nil || !bytes.Equal(got, mac.Sum(nil)) {
		t.Errorf("%x, %v; want %x", got, err, mac.Sum(nil))
	}
}
