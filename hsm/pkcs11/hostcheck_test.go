package pkcs11

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
)

// onHost runs f while new wrap keys seal on the host.
func onHost(f func()) {
	shared.hostCheck = true
	defer func() { shared.hostCheck = false }()
	f()
}

// A token that checks passwords on the host passes the suite.
func TestContractHostCheck(t *testing.T) {
	onHost(func() { hsmtest.Run(t, func(*testing.T) hsm.Token { return shared }) })
}

// hostKept is a secret that a new key keeps on the host.
func hostKept(t *testing.T, label string) (wrap hsm.Key, kept, secret []byte) {
	t.Helper()
	onHost(func() {
		wrap = generate(t, label, hsm.WrapKey)
		secret = random(32)
		i := hsmtest.WrapFor(t, generate(t, label+"-enrol", hsm.DeriveP256), secret)
		i.Wrap = wrap.ID
		var err error
		if kept, err = shared.Import(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	})
	return wrap, kept, secret
}

// TestHostKey: the wrap key is an HMAC key that is listed as a wrap key, never wraps, and gives 56 bytes.
func TestHostKey(t *testing.T) {
	wrap, kept, _ := hostKept(t, "host-key")
	keys, err := shared.Keys(t.Context())
	if err != nil || !slices.ContainsFunc(keys, func(k hsm.Key) bool { return k.ID == wrap.ID && k.Usage == hsm.WrapKey }) {
		t.Errorf("not listed as a wrap key: %v", err)
	}
	all, err := shared.Objects(t.Context())
	i := slices.IndexFunc(all, func(o hsm.Object) bool { return bytes.Equal(o.ID, wrap.ID[:]) })
	if err != nil || i < 0 || all[i].True&hsm.AttrUsages != hsm.AttrSign|hsm.AttrVerify || all[i].KeyType != "CKK_GENERIC_SECRET" {
		t.Errorf("objects %v, %v", all, err)
	}
	if len(kept) != 56 {
		t.Errorf("%d bytes, want 56", len(kept))
	}
	if _, err := shared.MAC(t.Context(), wrap.ID, nil); !errors.Is(err, hsm.ErrKey) {
		t.Errorf("a MAC under it: %v, want ErrKey", err)
	}
	raw(t, func(s *session) error {
		left, err := shared.findAll(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
		if err == nil && len(left) != 0 {
			t.Errorf("%d session objects are left", len(left))
		}
		return err
	})
}

// TestHostCheckOff: without the setting such a key is refused, and the error names the setting.
func TestHostCheckOff(t *testing.T) {
	wrap, kept, _ := hostKept(t, "host-off")
	_, err := shared.MACWrapped(t.Context(), wrap.ID, kept, nil)
	if !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), `hsm.password_check = "host"`) {
		t.Errorf("%v", err)
	}
}

// TestHostRewrap: a secret moves from the host into the token, and not out of it.
func TestHostRewrap(t *testing.T) {
	host, kept, secret := hostKept(t, "host-rewrap")
	inside := generate(t, "inside-rewrap", hsm.WrapKey)
	onHost(func() {
		moved, err := shared.Rewrap(t.Context(), hsm.Rewrap{From: host.ID, To: inside.ID, Wrapped: kept})
		if err != nil || len(moved) != 40 {
			t.Fatalf("into the token: %d bytes, %v", len(moved), err)
		}
		m := hmac.New(sha256.New, secret)
		m.Write([]byte("data"))
		if got, err := shared.MACWrapped(t.Context(), inside.ID, moved, []byte("data")); err != nil || !hmac.Equal(got, m.Sum(nil)) {
			t.Errorf("its MAC: %x, %v", got, err)
		}
		back, err := shared.Rewrap(t.Context(), hsm.Rewrap{From: inside.ID, To: host.ID, Wrapped: moved})
		if !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), "inside the token") {
			t.Errorf("out of the token: %d bytes, %v", len(back), err)
		}
	})
}

// TestHostHint: a module that cannot have wrap keys names the setting, and with it needs HMAC keys only.
func TestHostHint(t *testing.T) {
	have := shared.have
	defer func() { shared.have = have }()
	shared.have = available{}
	for m, ok := range have {
		shared.have[m] = ok && m != pkcs11.CKM_AES_KEY_WRAP_PAD && m != pkcs11.CKM_AES_KEY_GEN
	}
	_, err := shared.Generate(t.Context(), hsm.KeySpec{Label: "hint", Usage: hsm.WrapKey})
	if !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), `hsm.password_check = "host"`) {
		t.Errorf("%v", err)
	}
	onHost(func() {
		defer func(before []string) { shared.missing = before }(shared.missing)
		if err := shared.checkMechanisms(nil); err != nil || len(shared.missing) == 0 || shared.missing[0] != hostNotice {
			t.Errorf("notices %q, %v", shared.missing, err)
		}
		generate(t, "hinted", hsm.WrapKey)
	})
}
