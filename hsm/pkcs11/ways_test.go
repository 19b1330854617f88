package pkcs11

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// tried chooses the ways anew, with a change of what the module is believed to have, and returns
// them. The shared token has its own again afterwards.
func triedWith(t *testing.T, change func(available)) (ways, map[string]string) {
	t.Helper()
	ways, have, refused := shared.ways, shared.have, shared.refused
	defer func() { shared.ways, shared.have, shared.refused = ways, have, refused }()
	shared.have = available{}
	for m, yes := range have {
		shared.have[m] = yes
	}
	change(shared.have)
	if err := shared.chooseWays(); err != nil {
		t.Fatal(err)
	}
	noSessionObjects(t)
	return shared.ways, shared.refused
}

// SoftHSM does everything in the ways of the standard, and the trials leave nothing behind.
func TestWaysOfSoftHSM(t *testing.T) {
	chosen, refused := triedWith(t, func(available) {})
	if chosen.mac != standard.mac || chosen.wrapping != standard.wrapping || chosen.importer != importInside ||
		chosen.openZ || len(chosen.unseen) > 0 || len(chosen.untried) > 0 || len(refused) > 0 {
		t.Errorf("%+v, refused %v", chosen, refused)
	}
	want := []string{
		"MAC: CKK_GENERIC_SECRET by CKM_GENERIC_SECRET_KEY_GEN", "key wrap: CKM_AES_KEY_WRAP_PAD (0x210a)",
		"import of verifiers: inside the token", "key agreement: CKD_NULL, a secret that is read, for suite 1 and suite 2",
	}
	if got := shared.Ways(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// A mechanism that is listed and does not work is not chosen, and no key of its usage is promised.
func TestWaysNoWrap(t *testing.T) {
	chosen, refused := triedWith(t, func(have available) {
		have[pkcs11.CKM_AES_KEY_WRAP_PAD], have[ckmAESKeyWrapKWP] = false, true
		have[wrapWays[0].mechanism] = false
	})
	if chosen.wrapping != (wrapWay{}) || len(refused) != 0 { // nothing lists a key wrap: nothing was tried
		t.Errorf("%+v, refused %v", chosen, refused)
	}
}

// Without CKM_AES_ECB_ENCRYPT_DATA, verifiers are imported by the worker.
func TestWaysImportByWorker(t *testing.T) {
	chosen, refused := triedWith(t, func(have available) { have[pkcs11.CKM_AES_ECB_ENCRYPT_DATA] = false })
	if chosen.importer != importWorker || len(refused) != 0 {
		t.Errorf("%+v, refused %v", chosen, refused)
	}
}

// The outcome of a trial is that the way works, that the module refuses it, or that the module fails.
func TestOutcome(t *testing.T) {
	for code, want := range map[uint]struct {
		calls   int
		refused bool
	}{
		pkcs11.CKR_MECHANISM_PARAM_INVALID: {1, true}, pkcs11.CKR_MECHANISM_INVALID: {1, true}, pkcs11.CKR_ARGUMENTS_BAD: {1, true},
		pkcs11.CKR_TEMPLATE_INCONSISTENT: {1, true}, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID: {1, true}, pkcs11.CKR_KEY_TYPE_INCONSISTENT: {1, true},
		pkcs11.CKR_FUNCTION_NOT_SUPPORTED: {1, true}, pkcs11.CKR_GENERAL_ERROR: {3, false}, pkcs11.CKR_FUNCTION_FAILED: {3, false},
		0x80000007: {1, false}, pkcs11.CKR_DEVICE_REMOVED: {1, false}, pkcs11.CKR_SESSION_HANDLE_INVALID: {1, false}, pkcs11.CKR_HOST_MEMORY: {1, false},
	} {
		calls := 0
		err := shared.outcome(func() error { calls++; return at("C_DeriveKey", pkcs11.Error(code)) })
		if errors.Is(err, errRefused) != want.refused || calls != want.calls || !strings.Contains(err.Error(), "C_DeriveKey") {
			t.Errorf("%v: %d calls, %v", pkcs11.Error(code), calls, err)
		}
	}
	calls := 0
	once := func() error {
		if calls++; calls == 1 {
			return at("C_Sign", pkcs11.Error(pkcs11.CKR_GENERAL_ERROR))
		}
		return nil
	}
	if err := shared.outcome(once); err != nil || calls != 2 {
		t.Errorf("a failure once: %v after %d calls", err, calls)
	}
	if err := shared.outcome(func() error { return at("C_Sign", errShort) }); err == nil || errors.Is(err, errRefused) {
		t.Errorf("a wrong result each time: %v, want the failure of the module", err)
	}
}

// A MAC in parts is the MAC.
func TestMACInParts(t *testing.T) {
	k := generate(t, "parts", hsm.MACKey)
	for _, n := range []int{0, 1, macPart, macPart + 1, 64 << 10} {
		data := random(n)
		want, err := shared.MAC(t.Context(), k.ID, data)
		if err != nil {
			t.Fatal(err)
		}
		raw(t, func(s *session) error {
			got, err := shared.macInParts(s, objects(t, k.ID[:])[0], data)
			if err == nil && !bytes.Equal(got, want) {
				t.Errorf("%d bytes: %x, want %x", n, got, want)
			}
			return err
		})
	}
}

// Only the usages that a module refuses to see are left out. This one refuses two on HMAC keys.
func TestSeeing(t *testing.T) {
	defer func() { shared.ways.unseen = nil }()
	refuses := []uint{pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP}
	try := func() error {
		template := shared.seen(profiles[hsm.MACKey].protection(false))
		if slices.ContainsFunc(template, func(a *pkcs11.Attribute) bool { return slices.Contains(refuses, a.Type) }) {
			return at("C_GenerateKey", pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID))
		}
		return nil
	}
	if err := shared.seeing(secretUsages, try); err != nil || !slices.Equal(shared.ways.unseen, refuses) {
		t.Errorf("left out %x, %v; want %x", shared.ways.unseen, err, refuses)
	}
	if got := shared.Ways(); !slices.Contains(got, "templates: without CKA_WRAP, CKA_UNWRAP") {
		t.Errorf("%q", got)
	}
	list := shared.sessionSecret(pkcs11.CKK_AES, false, pkcs11.CKA_WRAP)
	if !slices.ContainsFunc(list, func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_WRAP && truth(a.Value) }) {
		t.Error("a usage that is true was left out")
	}
	shared.ways.unseen = nil
	inconsistent := func() error { return at("C_GenerateKey", pkcs11.Error(pkcs11.CKR_TEMPLATE_INCONSISTENT)) }
	if err := shared.seeing(secretUsages, inconsistent); !errors.Is(err, errRefused) || len(shared.ways.unseen) > 0 {
		t.Errorf("a template that is refused without them: %v, left out %x", err, shared.ways.unseen)
	}
}
