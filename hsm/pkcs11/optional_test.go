package pkcs11

import (
	"slices"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// failsOnce runs withFewerOptional with a function that fails once with a code, and returns how
// often it was called.
func failsOnce(t *testing.T, code uint) (calls int, err error) {
	t.Helper()
	raw(t, func(s *session) error {
		shared.changing.Lock()
		defer shared.changing.Unlock()
		err = shared.withFewerOptional(s, func() error {
			if calls++; calls == 1 {
				return at("C_GenerateKey", pkcs11.Error(code))
			}
			return nil
		})
		return nil
	})
	return calls, err
}

// An error says nothing about the next key: it gets all attributes that the module keeps.
func TestErrorCostsNoAttributes(t *testing.T) {
	for code, wantCalls := range map[uint]int{
		pkcs11.CKR_GENERAL_ERROR: 1, pkcs11.CKR_FUNCTION_FAILED: 1, pkcs11.CKR_DEVICE_ERROR: 1, pkcs11.CKR_HOST_MEMORY: 1,
		pkcs11.CKR_ATTRIBUTE_TYPE_INVALID: 2, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID: 2, pkcs11.CKR_TEMPLATE_INCONSISTENT: 2,
	} {
		calls, err := failsOnce(t, code)
		if calls != wantCalls || (err != nil) != (wantCalls == 1) {
			t.Errorf("%v: %d calls, %v; want %d", pkcs11.Error(code), calls, err, wantCalls)
		}
		k := generate(t, "after an error", hsm.MACKey)
		if o := theObject(t, markOf(t, k)); !o.Has(hsm.AttrRestricted) || !slices.Equal(o.Mechanisms, []string{"CKM_SHA256_HMAC"}) {
			t.Errorf("%v: the next key has mechanisms %q", pkcs11.Error(code), o.Mechanisms)
		}
	}
	raw(t, func(s *session) error {
		left, err := shared.findAll(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, trialLabel)})
		if err == nil && len(left) != 0 {
			t.Errorf("%d objects of trials are left", len(left))
		}
		return err
	})
}

// A module that refuses CKA_MODIFIABLE false, as AWS CloudHSM does, gets each key without it in the end,
// and the templates of both halves are as it wants them.
func TestWithoutFixed(t *testing.T) {
	raw(t, func(s *session) error {
		shared.changing.Lock()
		defer shared.changing.Unlock()
		var sets []optional
		err := shared.withFewerOptional(s, func() error {
			sets = append(sets, shared.optional)
			for _, a := range shared.kept(append(profiles[hsm.SignP256].verifying(), tokenAttributes(nil, "x")...)) {
				if a.Type == pkcs11.CKA_MODIFIABLE || a.Type == pkcs11.CKA_PRIVATE {
					return at("C_GenerateKeyPair", pkcs11.Error(pkcs11.CKR_TEMPLATE_INCONSISTENT))
				}
			}
			return nil
		})
		want := []optional{allOptional, allOptional &^ restricted, openHalf | fixed, fixed, noOptional}
		if err != nil || !slices.Equal(sets, want) || shared.optional != allOptional {
			t.Errorf("tried with %v, want %v: %v; the next key begins with %q", sets, want, err, shared.optional.names())
		}
		return nil
	})
}

// The trials find nothing that SoftHSM refuses, and leave nothing.
func TestRefusesNothing(t *testing.T) {
	raw(t, func(s *session) error {
		shared.changing.Lock()
		defer shared.changing.Unlock()
		if refused := shared.refusedOptional(s); refused != noOptional || shared.optional != allOptional {
			t.Errorf("refused %q, and left %q", refused.names(), shared.optional.names())
		}
		left, err := shared.findAll(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, trialLabel)})
		if err == nil && len(left) != 0 {
			t.Errorf("%d objects of trials are left", len(left))
		}
		return err
	})
}

// A module that refuses an attribute with a code that says nothing does so each time, and takes
// the key without it each time.
func TestRefuses(t *testing.T) {
	failed := pkcs11.Error(pkcs11.CKR_GENERAL_ERROR)
	for name, c := range map[string]struct {
		with, without []bool // which calls succeed
		want          bool
	}{
		"always":        {[]bool{false, false}, []bool{true, true}, true},
		"never":         {[]bool{true}, nil, false},
		"once":          {[]bool{false, true}, []bool{true}, false},
		"outage":        {[]bool{false}, []bool{false}, false},
		"second outage": {[]bool{false, false}, []bool{true, false}, false},
	} {
		play := func(answers []bool) func() error {
			return func() error {
				ok := answers[0]
				if answers = answers[1:]; ok {
					return nil
				}
				return failed
			}
		}
		if got := refuses(play(c.with), play(c.without)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A key without CKA_ALLOWED_MECHANISMS shows on a token that keeps them.
func TestUnrestrictedShows(t *testing.T) {
	id := random(20)
	raw(t, func(s *session) error {
		mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, nil)}
		_, err := shared.ctx.GenerateKey(s.handle, mech, profiles[hsm.MACKey].secret(id, fresh("unrestricted")))
		return err
	})
	if o := theObject(t, id); o.Told&hsm.AttrRestricted == 0 || o.Has(hsm.AttrRestricted) || o.Mechanisms != nil {
		t.Errorf("told %v, true %v, mechanisms %q", o.Told.Names(), o.True.Names(), o.Mechanisms)
	}
	k := generate(t, "restricted", hsm.SignP256)
	if o := theObject(t, markOf(t, k)); !o.Has(hsm.AttrRestricted) {
		t.Errorf("a key of ours: told %v, true %v", o.Told.Names(), o.True.Names())
	}
}
