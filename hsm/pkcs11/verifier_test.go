package pkcs11

import (
	"errors"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
)

// A restored secret can be neither read nor wrapped again, not even with its own wrap key.
func TestRestoredStaysInside(t *testing.T) {
	k := generate(t, "restore", hsm.WrapKey)
	secret := make([]byte, 32)
	raw(t, func(s *session) error {
		wrap := object{handle: objects(t, markOf(t, k))[0]}
		wrapped, err := shared.wrap(s, wrap, secret)
		if err != nil {
			return err
		}
		h, err := shared.unwrap(s, wrap, wrapped)
		if err != nil {
			return err
		}
		defer shared.destroy(s, h, &err)
		if _, err := shared.native.value(s.handle, h, 32); err != pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
			t.Errorf("reading the value: %v, want CKR_ATTRIBUTE_SENSITIVE", err)
		}
		if _, err := shared.ctx.WrapKey(s.handle, shared.wrapping(), wrap.handle, h); err != pkcs11.Error(pkcs11.CKR_KEY_UNEXTRACTABLE) {
			t.Errorf("wrapping it: %v, want CKR_KEY_UNEXTRACTABLE", err)
		}
		if _, ok, err := shared.attributes(s, h, pkcs11.CKA_SIGN); err != nil || !ok {
			t.Errorf("the secret is not there: %v", err)
		}
		return nil
	})
}

// imported returns a call of Import with good arguments, and its secret.
func imported(t *testing.T, prefix string) (hsm.Import, []byte) {
	t.Helper()
	secret := []byte("0123456789abcdef0123456789abcdef")
	i := hsmtest.WrapFor(t, generate(t, prefix+"-enrol", hsm.DeriveP256), secret)
	i.Wrap = generate(t, prefix+"-wrap", hsm.WrapKey).ID
	return i, secret
}

// Neither an import nor a check leaves a session object behind, whether it
// succeeds or not.
func TestVerifierLeavesNothing(t *testing.T) {
	i, _ := imported(t, "leaves")
	wrapped, err := shared.Import(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shared.MACWrapped(t.Context(), i.Wrap, wrapped, nil); err != nil {
		t.Fatal(err)
	}
	bad := i
	bad.Context[0] ^= 1
	if _, err := shared.Import(t.Context(), bad); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("Import: %v, want ErrInput", err)
	}
	if _, err := shared.MACWrapped(t.Context(), i.Wrap, i.Wrapped, nil); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("MACWrapped: %v, want ErrInput", err)
	}
	raw(t, func(s *session) error {
		left, err := shared.findAll(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
		if err == nil && len(left) != 0 {
			t.Errorf("%d session objects are left", len(left))
		}
		return err
	})
}

// Both ways of importing store the secret unchanged.
func TestImportBothWays(t *testing.T) {
	i, secret := imported(t, "both-ways")
	defer func() { shared.ways.importer = importInside }()
	kept := map[string]bool{}
	for _, shared.ways.importer = range []importWay{importInside, importWorker} {
		wrapped, err := shared.Import(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		kept[string(wrapped)] = true
	}
	raw(t, func(s *session) error {
		want, err := shared.wrap(s, object{handle: objects(t, i.Wrap[:])[0]}, secret)
		if len(kept) != 1 || !kept[string(want)] {
			t.Errorf("kept %d different ones, want %x", len(kept), want)
		}
		return err
	})
}

// A module without CKM_AES_ECB_ENCRYPT_DATA passes the suite.
func TestContractHostImport(t *testing.T) {
	shared.ways.importer = importWorker
	defer func() { shared.ways.importer = importInside }()
	hsmtest.Run(t, func(*testing.T) hsm.Token { return shared })
}

// If the key is gone when a secret is unwrapped, the token is lost; a secret that a
// working key does not unwrap is bad input.
func TestJudged(t *testing.T) {
	k := generate(t, "unwrapError", hsm.WrapKey)
	general := pkcs11.Error(pkcs11.CKR_GENERAL_ERROR)
	raw(t, func(s *session) error {
		sound := object{handle: objects(t, markOf(t, k))[0]}
		if c := classify(shared.unwrapError(s, sound, general)); c != input {
			t.Errorf("sound token: class %d, want input", c)
		}
		if c := classify(shared.unwrapError(s, object{handle: 1 << 20}, general)); c != reconnect {
			t.Errorf("broken token: class %d, want reconnect", c)
		}
		if err := shared.unwrapError(s, sound, nil); err != nil {
			t.Errorf("no error: %v", err)
		}
		return nil
	})
}
