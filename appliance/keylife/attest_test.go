package keylife_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/hsm/failover"
	"countersign/hsm/memory"
)

// telling is a token whose list of objects is changed.
type telling struct {
	hsm.Token
	change func([]hsm.Object) []hsm.Object
}

func (a telling) Objects(ctx context.Context) ([]hsm.Object, error) {
	all, err := a.Token.Objects(ctx)
	return a.change(all), err
}

// attested loads a token and returns its findings in one line.
func (l *life) attested(token hsm.Token) string {
	l.Helper()
	l.load(token)
	found, err := keylife.Attest(l.Context(), l.Keys)
	if err != nil {
		l.Fatal(err)
	}
	var wrong []string
	for _, f := range found {
		if wrong = append(wrong, f.Drift...); f.Unknown {
			wrong = append(wrong, "unknown")
		}
	}
	return strings.Join(wrong, "; ")
}

// TestAttest: each wrong attribute is a finding, and so is an extra or a missing object.
func TestAttest(t *testing.T) {
	l := newLife(t)
	for name, change := range map[string]func(o *hsm.Object){
		"":                              func(*hsm.Object) {},
		"not CKA_LOCAL":                 func(o *hsm.Object) { o.True &^= hsm.AttrLocal },
		"not CKA_ALWAYS_SENSITIVE":      func(o *hsm.Object) { o.True &^= hsm.AttrAlwaysSensitive },
		"not CKA_NEVER_EXTRACTABLE":     func(o *hsm.Object) { o.True &^= hsm.AttrNeverExtractable },
		"not CKA_SENSITIVE":             func(o *hsm.Object) { o.True &^= hsm.AttrSensitive },
		"not CKA_PRIVATE":               func(o *hsm.Object) { o.True &^= hsm.AttrPrivate },
		"CKA_EXTRACTABLE":               func(o *hsm.Object) { o.True |= hsm.AttrExtractable },
		"CKA_EXTRACTABLE not told":      func(o *hsm.Object) { o.Told &^= hsm.AttrExtractable },
		"CKA_MODIFIABLE":                func(o *hsm.Object) { o.True |= hsm.AttrModifiable },
		"usages CKA_SIGN CKA_DECRYPT":   func(o *hsm.Object) { o.True |= hsm.AttrDecrypt },
		"mechanisms CKM_RSA_PKCS":       func(o *hsm.Object) { o.Mechanisms = []string{"CKM_RSA_PKCS"} },
		"CKO_SECRET_KEY of CKK_EC":      func(o *hsm.Object) { o.Class = "CKO_SECRET_KEY" },
		"unknown; 0 objects":            func(o *hsm.Object) { o.ID, o.Key = []byte{1, 2, 3}, hsm.KeyID{} },
		"mechanisms CKM_ECDSA CKM_ECDH": func(o *hsm.Object) { o.Mechanisms = []string{"CKM_ECDSA", "CKM_ECDH"} },
	} {
		change := func(all []hsm.Object) []hsm.Object {
			change(&all[slices.IndexFunc(all, func(o hsm.Object) bool { return o.Label == "ca@1" })])
			return all
		}
		if wrong := l.attested(telling{l.token, change}); wrong != name {
			t.Errorf("found %q, want %q", wrong, name)
		}
	}
	for name, change := range map[string]func([]hsm.Object) []hsm.Object{
		"unknown":   func(all []hsm.Object) []hsm.Object { return append(all, hsm.Object{Label: "stranger"}) },
		"0 objects": func(all []hsm.Object) []hsm.Object { return all[1:] },
		"2 objects": func(all []hsm.Object) []hsm.Object { return append(all, all[0]) },
	} {
		if wrong := l.attested(telling{l.token, change}); wrong != name {
			t.Errorf("found %q, want %q", wrong, name)
		}
	}
}

// TestAttestOtherWays: a module that makes HMAC keys of another type, or wraps by a mechanism of its vendor,
// has the keys that the registry requires.
func TestAttestOtherWays(t *testing.T) {
	l := newLife(t)
	for _, wrap := range []string{"CKM_AES_KEY_WRAP_KWP", "CKM_LUNA_AES_KWP", "CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD", "CKM_AES_KEY_WRAP"} {
		change := func(all []hsm.Object) []hsm.Object {
			for i, o := range all {
				switch o.Label {
				case "mac@1":
					all[i].KeyType = "CKK_SHA256_HMAC"
				case "wrap@1":
					all[i].Mechanisms = []string{wrap}
				}
			}
			return all
		}
		if wrong := l.attested(telling{l.token, change}); wrong != "" {
			t.Errorf("%s: found %q", wrap, wrong)
		}
	}
	change := func(all []hsm.Object) []hsm.Object {
		all[slices.IndexFunc(all, func(o hsm.Object) bool { return o.Label == "wrap@1" })].KeyType = "CKK_SHA256_HMAC"
		return all
	}
	if wrong := l.attested(telling{l.token, change}); wrong != "CKO_SECRET_KEY of CKK_SHA256_HMAC" {
		t.Errorf("a wrap key of another type: found %q", wrong)
	}
}

// TestAttestSilent: a token that reports fewer attributes is no reason for alarm.
func TestAttestSilent(t *testing.T) {
	l := newLife(t)
	silent := func(all []hsm.Object) []hsm.Object {
		const unknown = hsm.AttrLocal | hsm.AttrAlwaysSensitive | hsm.AttrNeverExtractable | hsm.AttrModifiable
		for i := range all {
			all[i].True, all[i].Told, all[i].Mechanisms = all[i].True&^unknown, all[i].Told&^unknown, nil
		}
		return all
	}
	if wrong := l.attested(telling{l.token, silent}); wrong != "" {
		t.Errorf("found %q", wrong)
	}
}

// TestAttestHost: the HMAC key in place of a wrap key has no drift, and a key for MACs is no wrap key.
func TestAttestHost(t *testing.T) {
	l := newLife(t)
	for may, want := range map[hsm.Attributes]string{
		hsm.AttrSign | hsm.AttrVerify: "",
		hsm.AttrSign:                  "CKO_SECRET_KEY of CKK_GENERIC_SECRET; usages CKA_SIGN; mechanisms CKM_SHA256_HMAC",
	} {
		host := func(all []hsm.Object) []hsm.Object {
			o := &all[slices.IndexFunc(all, func(o hsm.Object) bool { return o.Label == "wrap@1" })]
			o.KeyType, o.True, o.Mechanisms = "CKK_GENERIC_SECRET", o.True&^hsm.AttrUsages|may, []string{"CKM_SHA256_HMAC"}
			return all
		}
		if wrong := l.attested(telling{l.token, host}); wrong != want {
			t.Errorf("found %q, want %q", wrong, want)
		}
	}
}

// TestAttestUnrestricted: a key without CKA_ALLOWED_MECHANISMS differs on a token that keeps them.
func TestAttestUnrestricted(t *testing.T) {
	l := newLife(t)
	bare := func(all []hsm.Object) []hsm.Object {
		all[0].True, all[0].Mechanisms = all[0].True&^hsm.AttrRestricted, nil
		return all
	}
	if wrong := l.attested(telling{l.token, bare}); wrong != "not CKA_ALLOWED_MECHANISMS" {
		t.Errorf("found %q", wrong)
	}
}

// TestAttestSeveral: each of two tokens is compared, and a key that was copied to the
// other token has there the attributes of a copy.
func TestAttestSeveral(t *testing.T) {
	first, second := memory.New(), memory.New()
	set := failover.New(failover.Config{
		Members: []failover.Member{{Name: "first", Token: at{first}}, {Name: "second", Token: at{second}}},
		Timeout: time.Second, Logger: hclog.NewNullLogger(),
	})
	l := newLifeOn(t, set)
	if wrong := l.attested(set); wrong != "" {
		t.Fatalf("as made: %q", wrong)
	}
	if l.Ring().Keys()[0].Origin != store.Copied {
		t.Errorf("origin %q", l.Ring().Keys()[0].Origin)
	}
	wrap, err := l.Current(keyring.Wrap, l.now)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Destroy(t.Context(), wrap.ID); err != nil {
		t.Fatal(err)
	}
	if wrong := l.attested(set); wrong != "0 objects" {
		t.Errorf("one key gone from the second token: %q", wrong)
	}
	if _, err := second.Generate(t.Context(), hsm.KeySpec{Label: "wrap@1", Usage: hsm.WrapKey}); err != nil {
		t.Fatal(err)
	}
	if wrong := l.attested(set); wrong != "unknown; 0 objects" {
		t.Errorf("another in its place: %q", wrong)
	}
}

// at is a token in memory that is always ready.
type at struct{ *memory.Token }

func (at) Ready() bool     { return true }
func (at) InFlight() int   { return 0 }
func (at) Returns() uint64 { return 1 }
