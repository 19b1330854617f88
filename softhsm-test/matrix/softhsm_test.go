package matrix

import (
	"testing"

	"countersign/hsm/hsmtest"
)

// softHSM is the reference. The tests of hsm/pool run the suite on it every day.
var softHSM = module{
	name: "SoftHSM", packages: []string{"softhsm2"},
	setUp: func(t *testing.T) token {
		s := hsmtest.NewSoftHSM(t)
		s.Setenv(t)
		return token{library: s.Module, label: s.Label, pin: s.PIN}
	},
}
