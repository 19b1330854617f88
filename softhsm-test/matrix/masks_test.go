package matrix

import (
	"os"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/softhsm-test/masks/profiles"
	"countersign/softhsm-test/shim/shimtest"
)

// TestMasks runs the suite behind each mask. table reads it as it reads [TestModules], for its second table.
func TestMasks(t *testing.T) {
	all, err := profiles.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		t.Run(p.Name, func(t *testing.T) {
			if os.Getenv(allVariable) != "all" {
				t.Skip("make hsm-matrix runs it")
			}
			t.Logf("version: %s", p.Title)
			hsmtest.Run(t, func(t *testing.T) hsm.Token { return open(t, behind(t, p)) })
		})
	}
}

// serving are the usages that the appliance requires.
var serving = []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.MACKey}

// behind is a SoftHSM token behind a mask.
func behind(t *testing.T, p profiles.Profile) token {
	t.Helper()
	dir := t.TempDir()
	s, err := shimtest.New("../../bin", dir)
	if err != nil {
		t.Fatal(err)
	}
	mask, err := p.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	hsmtest.Worker(t) // go build has no mask
	h := hsmtest.NewSoftHSM(t)
	h.Setenv(t)
	for _, assignment := range append(s.Env(), mask) {
		name, value, _ := strings.Cut(assignment, "=")
		t.Setenv(name, value)
	}
	pin := h.PIN
	if p.UserPassword() {
		pin = "countersign:" + pin
	}
	return token{library: s.Module, label: h.Label, pin: pin, require: serving}
}
