package rules_test

import (
	"testing"

	"countersign/appliance/appliancetest"
)

// TestPolicyOfNobody: a policy without a change request is not in force, neither now nor after a
// restart.
func TestPolicyOfNobody(t *testing.T) {
	b := appliancetest.New(t)
	b.Tamper(1, `INSERT INTO policy (version, document, activated_us, seal) SELECT 2, ?, activated_us, seal FROM policy`,
		[]byte("[[service]]\nid = 100\nname = \"door\"\nlevel = 1\n"))
	b.Forgeries(func() {
		if p, err := b.Store.ActivePolicy(t.Context()); err != nil || p.Version != 1 {
			t.Errorf("policy %d is in force: %v", p.Version, err)
		}
	})
	b.Restart()
	if p, err := b.Rules.Policy(t.Context()); err != nil || p.Version != 1 {
		t.Errorf("after a start policy %d is in force: %v", p.Version, err)
	}
}
