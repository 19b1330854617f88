package rules_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/parties"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
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

// withAuto starts an appliance that takes the steps of its keys by itself.
func withAuto(c *appliance.Config) { c.Schedule.Auto = true }

// TestScheduleHasNoVote: an appliance that takes the steps of its keys by itself accepts no policy
// that wants them countersigned, and does not start with one.
func TestScheduleHasNoVote(t *testing.T) {
	b := appliancetest.New(t)
	b.Restart(withAuto)
	for _, kind := range []string{"key.rotate", "key.activate", "key.retire"} {
		strict := appliancetest.QuorumPolicy("[quorum]\n\"" + kind + "\" = 2\n")
		if _, err := b.Requests.Ask(t.Context(), rules.Draft(strict)); !errors.Is(err, rules.ErrAuto) || !errors.Is(err, parties.ErrInput) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	lax := appliancetest.QuorumPolicy("[quorum]\n\"key.destroy\" = 2\n")
	if c, err := b.Requests.Ask(t.Context(), rules.Draft(lax)); err != nil || c.State != store.ChangeExecuted {
		t.Errorf("another quorum: %s, %v", c.State, err)
	}
	b.Restart()
	strict := appliancetest.QuorumPolicy("[quorum]\n\"key.rotate\" = 2\n")
	if c, err := b.Requests.Ask(t.Context(), rules.Draft(strict)); err != nil || c.State != store.ChangeExecuted {
		t.Fatalf("without auto: %s, %v", c.State, err)
	}
	c := appliance.Config{Store: b.Store, Keys: b.Keyring, Logger: hclog.NewNullLogger(), Now: b.Clock.Now}
	withAuto(&c)
	if _, err := appliance.New(t.Context(), c); !errors.Is(err, rules.ErrAuto) || !strings.Contains(err.Error(), "key.rotate") {
		t.Errorf("started: %v", err)
	}
}

// TestPolicyOfTheReleaseBefore: a policy in force that this release would refuse is loaded. Phones with
// a UV key do not approve for others because of their key, and a key that was not attested is no
// factor.
func TestPolicyOfTheReleaseBefore(t *testing.T) {
	b := appliancetest.New(t)
	document := strings.NewReplacer(`role = "approver"`, `role = "uv"`, `attestation = ["none"]`, `attestation = ["unverified", "none"]`,
		"local = true", "\"key.restore\" = 2").Replace(string(policy.Default()))
	b.AddPolicy(2, []byte(document))
	b.Restart()
	if active := b.Rules.Active(); active.Number != 2 || len(active.Ignored()) != 3 || active.AcceptsAttestation(policy.Unverified) {
		t.Fatalf("policy %d, ignored %q", active.Number, active.Ignored())
	}
	alice, bob := b.EnrolFull("alice"), b.EnrolFull("bob") // attested by "none"
	_, pending := b.Pending(alice)
	second := bob.Second(pending.Res.NextHandle)
	if a := second.Right(); a.P4.Result == protocol.ResultApproved || a.P4.Reason != protocol.CodePolicy {
		t.Errorf("bob, who has a UV key, approves: %s, code %d", a.P4.Result, a.P4.Reason)
	}
	found := b.Examine(t.Context())
	if i := slices.IndexFunc(found, func(f appliance.Finding) bool { return f.Check == "quorum" }); found[i].Err == nil || !strings.Contains(found[i].Err.Error(), "key.restore") {
		t.Errorf("doctor: %v", found[i].Err)
	}
	if _, err := b.Requests.Ask(t.Context(), rules.Draft([]byte(document))); !errors.Is(err, parties.ErrInput) {
		t.Errorf("applied again: %v", err)
	}
}

// TestPolicyLeavesAWay: a policy that was approved is not written if too few administrators are left for it.
func TestPolicyLeavesAWay(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n")
	d := rules.Draft(appliancetest.QuorumPolicy("[quorum]\n\"policy.apply\" = 4\n\"admin.add\" = 4\n"))
	if _, err := b.Rules.Base(t.Context(), d.Parameters); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Requests.SuspendAdmin(t.Context(), "cat"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Rules.Apply(t.Context(), change.ID{}, d.Parameters); !errors.Is(err, parties.ErrInput) {
		t.Errorf("applied for four, of whom three are left: %v", err)
	}
}
