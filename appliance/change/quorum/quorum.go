// Package quorum counts administrators' countersignatures: which administrators there are,
// who of them signed a change request, and whether the request behind a stored record had
// enough signatures.
package quorum

import (
	"context"
	"errors"
	"fmt"

	"countersign/appliance/change"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/internal/bounded"
	"countersign/policy"
)

// Judge knows the administrators and verifies their signatures. It is safe for concurrent
// use.
type Judge struct {
	store  store.Store
	seals  *store.Seals
	domain string
	good   bounded.Map[[32]byte, struct{}] // verified requests, by contentOf: no signature is verified twice
}

// New returns the judge of an appliance with this trust domain.
func New(s store.Store, seals *store.Seals, domain string) *Judge {
	return &Judge{store: s, seals: seals, domain: domain}
}

// Domain returns the trust domain of the appliance.
func (j *Judge) Domain() string { return j.domain }

// Admins lists the administrators that a change request added, by name. It reports and
// leaves out every other.
func (j *Judge) Admins(ctx context.Context) ([]store.Admin, error) {
	all, err := j.store.ListAdmins(ctx)
	if err != nil {
		return nil, err
	}
	var countersigned []store.Admin
	for _, one := range all {
		err := j.Verify(ctx, recordOfAdmin(one))
		if errors.Is(err, store.ErrForged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		countersigned = append(countersigned, one)
	}
	return countersigned, nil
}

// AdminNamed finds an administrator by name, or returns [store.ErrNotFound].
func (j *Judge) AdminNamed(ctx context.Context, name string) (store.Admin, error) {
	all, err := j.Admins(ctx)
	return parties.Named(all, err, parties.Absent("administrator", name), func(one store.Admin) bool { return one.Name == name })
}

// Able counts who can countersign under a policy, leaving out the administrator named
// without.
func (j *Judge) Able(ctx context.Context, rules *policy.Policy, without string) (int, error) {
	able, _, err := j.others(ctx, rules, without)
	return able, err
}

// Left counts the active administrators under a policy without the one named. Unlike [Judge.Able] it counts those whose
// change request does not verify: a writer of the database who spoils that request takes their vote away, but must not
// lower what it takes to resume another. The records of the administrators themselves hang on the head.
func (j *Judge) Left(ctx context.Context, rules *policy.Policy, without string) (int, error) {
	all, err := j.store.ListAdmins(ctx)
	n := 0
	if rules.CountsLocal() {
		n++
	}
	for _, one := range all {
		if one.Status == store.Active && one.Name != without {
			n++
		}
	}
	return n, err
}

// others counts who can countersign under a policy, and who could after a resumption, leaving out
// the administrator named without.
func (j *Judge) others(ctx context.Context, rules *policy.Policy, without string) (able, suspended int, err error) {
	all, err := j.Admins(ctx)
	if rules.CountsLocal() {
		able++
	}
	for _, one := range all {
		switch {
		case one.Name == without:
		case one.Status == store.Active:
			able++
		case one.Status == store.Suspended:
			suspended++
		}
	}
	return able, suspended, err
}

// KeepsSigner refuses to suspend the last who can countersign: no other administrator could undo it.
func (j *Judge) KeepsSigner(ctx context.Context, rules *policy.Policy, last string) error {
	able, err := j.Able(ctx, rules, last)
	if err == nil && able == 0 {
		err = fmt.Errorf("%w: %s is the last administrator who can countersign: add or resume another first", parties.ErrInput, last)
	}
	return err
}

// KeepsWay refuses a policy under which too few could add administrators or change the policy: no
// administrator could undo it.
func (j *Judge) KeepsWay(ctx context.Context, rules *policy.Policy) error {
	able, err := j.Able(ctx, rules, "")
	if err == nil && able < wayBack(rules) {
		err = fmt.Errorf("%w: %d administrators can countersign, too few for admin.add and for policy.apply", parties.ErrInput, able)
	}
	return err
}

// KeepsWayWithout refuses to revoke an administrator if too few would be left for admin.add and for policy.apply.
// One who is suspended counts, because those who are left can resume them.
func (j *Judge) KeepsWayWithout(ctx context.Context, rules *policy.Policy, name string) error {
	if err := j.KeepsSigner(ctx, rules, name); err != nil {
		return err
	}
	able, suspended, err := j.others(ctx, rules, name)
	if err == nil && able+suspended < wayBack(rules) {
		err = fmt.Errorf("%w: %d administrators would be left, too few for admin.add and for policy.apply: add another first",
			parties.ErrInput, able+suspended)
	}
	return err
}

// wayBack is how many administrators it takes to have more of them, or other quorums.
func wayBack(rules *policy.Policy) int {
	return min(rules.Quorum(policy.AdminAdd).Administrators, rules.Quorum(policy.PolicyApply).Administrators)
}

// Quorum is how many administrators a kind of change requires, and how many there are.
type Quorum struct {
	Kind     policy.Kind
	Required int
	Able     int
}

// Quorums returns the quorum of each kind of change under a policy.
func (j *Judge) Quorums(ctx context.Context, rules *policy.Policy) ([]Quorum, error) {
	n, err := j.Able(ctx, rules, "")
	var all []Quorum
	for _, k := range policy.Kinds() {
		q := Quorum{Kind: k, Required: rules.Quorum(k).Administrators, Able: n}
		if rules.Unattended(k) {
			q.Required = 0
		}
		all = append(all, q)
	}
	return all, err
}

// Signer returns the name of the administrator who made a signature, [policy.Local] for the
// admin socket's, and "" if no administrator made it.
func Signer(h change.Hash, s store.ChangeSignature, admins []store.Admin) string {
	if s.Signer == [8]byte{} {
		return policy.Local
	}
	signature, err := change.ParseSignature(s.Signature)
	if err != nil {
		return ""
	}
	for _, one := range admins {
		if one.ID == s.Signer && signature.Verify(h, one.Key) == nil {
			return one.Name
		}
	}
	return ""
}
