package pkcs11

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// fresh returns a label that no earlier test used.
func fresh(label string) string { return label + "-" + rand.Text()[:8] }

// generate makes a key under a fresh label that begins with label.
func generate(t *testing.T, label string, usage hsm.Usage) hsm.Key {
	t.Helper()
	k, err := shared.Generate(t.Context(), hsm.KeySpec{Label: fresh(label), Usage: usage})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func listed(t *testing.T, label string) bool {
	t.Helper()
	keys, err := shared.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(keys, func(k hsm.Key) bool { return k.Label == label })
}

// raw calls the module directly.
func raw(t *testing.T, f func(*session) error) {
	t.Helper()
	if err := shared.run(t.Context(), hsm.KeyID{}, f); err != nil {
		t.Fatal(err)
	}
}

// markOf returns the CKA_ID of a key.
func markOf(t *testing.T, k hsm.Key) []byte {
	t.Helper()
	o, err := shared.lookUp(t.Context(), k.ID)
	if err != nil {
		t.Fatal(err)
	}
	return o.mark
}

// objects lists token objects of any class with the CKA_ID.
func objects(t *testing.T, mark []byte) (all []pkcs11.ObjectHandle) {
	t.Helper()
	raw(t, func(s *session) (err error) {
		all, err = shared.findAll(s, []*pkcs11.Attribute{marked(mark)})
		return err
	})
	return all
}

// TestAttributes reads what OpenSC, an independent implementation, sees.
func TestAttributes(t *testing.T) {
	for _, c := range []struct {
		usage hsm.Usage
		want  []string
	}{
		{hsm.SignP256, []string{"Private Key Object; EC", "Usage:      sign\n", "Access:     sensitive, always sensitive, never extractable, local\n", "Allowed mechanisms: ECDSA\n", "Public Key Object; EC", "Usage:      verify\n"}},
		{hsm.SignP384, []string{"Private Key Object; EC", "Usage:      sign\n", "Allowed mechanisms: ECDSA\n", "Public Key Object; EC", "Usage:      verify\n"}},
		{hsm.SignEd25519, []string{"Private Key Object; EC_EDWARDS", "Usage:      sign\n", "Access:     sensitive, always sensitive, never extractable, local\n", "Public Key Object; EC_EDWARDS"}},
		{hsm.SignRSA2048, []string{"Private Key Object; RSA", "Usage:      sign\n", "Access:     sensitive, always sensitive, never extractable, local\n", "Allowed mechanisms: RSA-PKCS,RSA-PKCS-PSS\n", "Public Key Object; RSA 2048 bits"}},
		{hsm.DeriveP256, []string{"Private Key Object; EC", "Usage:      derive\n", "Access:     sensitive, always sensitive, never extractable, local\n", "Allowed mechanisms: ECDH1-DERIVE\n"}},
		{hsm.MACKey, []string{"Secret Key Object; Generic secret length 32", "Access:     sensitive, always sensitive, never extractable, local\n"}},
		{hsm.WrapKey, []string{"Secret Key Object; AES length 32", "Usage:      wrap, unwrap\n", "Access:     sensitive, always sensitive, never extractable, local\n"}},
	} {
		t.Run(c.usage.String(), func(t *testing.T) {
			k := generate(t, "attributes-"+c.usage.String(), c.usage)
			out := softHSM.Tool(t, "-O", "--id", hex.EncodeToString(markOf(t, k)))
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if n := strings.Count(out, k.Label); n != len(objects(t, markOf(t, k))) {
				t.Errorf("label occurs %d times in\n%s", n, out)
			}
		})
	}
}

// A key on the token cannot be changed.
func TestNotModifiable(t *testing.T) {
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.MACKey} {
		k := generate(t, "fixed-"+usage.String(), usage)
		for _, h := range objects(t, markOf(t, k)) {
			raw(t, func(s *session) error {
				err := shared.ctx.SetAttributeValue(s.handle, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "stolen")})
				if err != pkcs11.Error(pkcs11.CKR_ATTRIBUTE_READ_ONLY) && err != pkcs11.Error(pkcs11.CKR_ACTION_PROHIBITED) {
					t.Errorf("%s: changing the label: %v", usage, err)
				}
				return nil
			})
		}
	}
}

// Each secret key names its one mechanism, which OpenSC does not show.
func TestAllowedMechanisms(t *testing.T) {
	for usage, want := range map[hsm.Usage]uint{hsm.MACKey: pkcs11.CKM_SHA256_HMAC, hsm.WrapKey: pkcs11.CKM_AES_KEY_WRAP_PAD} {
		k := generate(t, "allowed-"+usage.String(), usage)
		raw(t, func(s *session) error {
			values, ok, err := shared.attributes(s, objects(t, markOf(t, k))[0], pkcs11.CKA_ALLOWED_MECHANISMS)
			if err == nil && (!ok || ulong(values[0]) != want) {
				t.Errorf("%s: allowed mechanisms %x, want %x", usage, values, want)
			}
			return err
		})
	}
}

// A key that a wrap key restores is sensitive and stays on the token, even if the caller
// of C_UnwrapKey asks otherwise.
func TestUnwrapTemplate(t *testing.T) {
	k := generate(t, "wrap-template", hsm.WrapKey)
	wrapping := objects(t, markOf(t, k))[0]
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_WRAP_PAD, nil)}
	open := slices.DeleteFunc(derived(false), func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_VALUE_LEN })
	protection := append(slices.Clone(open[:len(open)-2]),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false))
	raw(t, func(s *session) error {
		o, err := shared.ctx.CreateObject(s.handle, append(slices.Clone(open), pkcs11.NewAttribute(pkcs11.CKA_VALUE, make([]byte, 32))))
		if err != nil {
			return err
		}
		defer func() { _ = shared.ctx.DestroyObject(s.handle, o) }()
		wrapped, err := shared.ctx.WrapKey(s.handle, mech, wrapping, o)
		if err != nil {
			return err
		}
		if _, err := shared.ctx.UnwrapKey(s.handle, mech, wrapping, wrapped, open); err != pkcs11.Error(pkcs11.CKR_TEMPLATE_INCONSISTENT) {
			t.Errorf("unwrapping as readable: %v, want CKR_TEMPLATE_INCONSISTENT", err)
		}
		restored, err := shared.ctx.UnwrapKey(s.handle, mech, wrapping, wrapped, protection)
		if err != nil {
			return err
		}
		defer func() { _ = shared.ctx.DestroyObject(s.handle, restored) }()
		if _, err := shared.native.value(s.handle, restored, 32); err != pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
			t.Errorf("reading the restored key: %v, want CKR_ATTRIBUTE_SENSITIVE", err)
		}
		return nil
	})
}

// Foreign objects are neither listed nor in the way.
func TestForeignObjects(t *testing.T) {
	softHSM.Tool(t, "--keypairgen", "--key-type", "EC:secp384r1", "--label", "foreign-p384", "--id", "01")
	softHSM.Tool(t, "--keypairgen", "--key-type", "rsa:2048", "--label", "foreign-rsa")
	softHSM.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "foreign-p256", "--id", strings.Repeat("ab", 20))
	softHSM.Tool(t, "--keygen", "--key-type", "AES:32", "--label", "foreign-aes", "--id", strings.Repeat("cd", 20))
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	softHSM.Tool(t, "--write-object", file, "--type", "data", "--label", "foreign-data")
	k := generate(t, "among-foreigners", hsm.SignP256)
	for _, label := range []string{"foreign-p384", "foreign-rsa", "foreign-p256", "foreign-aes", "foreign-data"} {
		if listed(t, label) {
			t.Errorf("%s is listed", label)
		}
	}
	if !listed(t, k.Label) {
		t.Error("our key is not listed")
	}
	_, err := shared.Generate(t.Context(), hsm.KeySpec{Label: "foreign-rsa", Usage: hsm.MACKey})
	if !errors.Is(err, hsm.ErrExists) {
		t.Errorf("generating under a foreign key's label: %v, want ErrExists", err)
	}
}

// Two keys with one id are both refused.
func TestAmbiguousID(t *testing.T) {
	k := generate(t, "ambiguous", hsm.SignP256)
	var twin pkcs11.ObjectHandle
	raw(t, func(s *session) (err error) {
		mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, nil)}
		twin, err = shared.ctx.GenerateKey(s.handle, mech, profiles[hsm.MACKey].secret(k.ID[:], fresh("twin")))
		return err
	})
	if listed(t, k.Label) {
		t.Error("an ambiguous key is listed")
	}
	if _, err := shared.Sign(t.Context(), k.ID, hsm.ES256, make([]byte, 32)); !errors.Is(err, hsm.ErrKey) || !strings.Contains(err.Error(), "2 keys") {
		t.Errorf("Sign: %v, want ErrKey for 2 keys", err)
	}
	raw(t, func(s *session) error { return shared.ctx.DestroyObject(s.handle, twin) })
	if _, err := shared.Sign(t.Context(), k.ID, hsm.ES256, make([]byte, 32)); err != nil {
		t.Errorf("Sign once there is one: %v", err)
	}
}

// stale gives a key an invalid handle, as after a change of the token.
func stale(k hsm.Key) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	o := shared.keys[k.ID]
	o.handle = 1 << 30
	shared.keys[k.ID] = o
}

// A stale handle is looked up again. A key that is gone while others remain was destroyed,
// and the token is not lost.
func TestStaleHandle(t *testing.T) {
	k := generate(t, "stale", hsm.SignP256)
	stale(k)
	if _, err := shared.Sign(t.Context(), k.ID, hsm.ES256, make([]byte, 32)); err != nil {
		t.Errorf("Sign with a stale handle: %v", err)
	}
	for _, h := range objects(t, markOf(t, k)) {
		raw(t, func(s *session) error { return shared.ctx.DestroyObject(s.handle, h) })
	}
	if _, err := shared.Sign(t.Context(), k.ID, hsm.ES256, make([]byte, 32)); !errors.Is(err, hsm.ErrKey) {
		t.Errorf("Sign with a key that another process destroyed: %v, want ErrKey", err)
	}
	select {
	case <-shared.Dead():
		t.Fatal("the token is dead")
	default:
	}
}

// A process that dies between the two halves leaves a public key alone. It is not used,
// and its label is free.
func TestHalfPair(t *testing.T) {
	k := generate(t, "half", hsm.SignP256)
	mark := markOf(t, k)
	raw(t, func(s *session) error {
		private, err := shared.find(s, pkcs11.CKO_PRIVATE_KEY, []*pkcs11.Attribute{marked(mark)})
		if err != nil {
			return err
		}
		return shared.ctx.DestroyObject(s.handle, private[0])
	})
	if listed(t, k.Label) {
		t.Error("half a pair is listed")
	}
	again, err := shared.Generate(t.Context(), hsm.KeySpec{Label: k.Label, Usage: hsm.SignP256})
	if err != nil || again.ID == k.ID {
		t.Errorf("the label is not free, or the same key again: %v", err)
	}
	if err := shared.Destroy(t.Context(), k.ID); err != nil || len(objects(t, mark)) != 0 {
		t.Errorf("Destroy leaves the half: %v", err)
	}
}

func TestGenerateLeavesNoDraft(t *testing.T) {
	generate(t, "draft", hsm.DeriveP256)
	raw(t, func(s *session) error {
		left, err := shared.findAll(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
		if err == nil && len(left) != 0 {
			t.Errorf("%d session objects are left", len(left))
		}
		return err
	})
}

func TestDecodePoint(t *testing.T) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := key.PublicKey().Bytes()
	octets, err := asn1.Marshal(point)
	if err != nil {
		t.Fatal(err)
	}
	bits, err := asn1.Marshal(asn1.BitString{Bytes: point, BitLength: 8 * len(point)})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string][]byte{"raw": point, "OCTET STRING": octets, "BIT STRING": bits} {
		if got, err := decodePoint(v, 65); err != nil || !slices.Equal(got, point) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	for name, v := range map[string][]byte{"empty": nil, "short": point[:64], "trailing": append(octets, 0), "text": []byte(hex.EncodeToString(point))} {
		if got, err := decodePoint(v, 65); err == nil {
			t.Errorf("%s: %x", name, got)
		}
	}
}
