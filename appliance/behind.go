package appliance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/policy"
)

// behind is a record that a change request made. The record names the request, and the
// request is judged again where the record is used: whoever writes to the database can
// write a record and a request, and no countersignature.
type behind struct {
	record any // store.Invitation, store.Admin or store.Policy
	what   string
	change change.ID // that the record names; zero: none
	kind   policy.Kind
	fits   func(change.Parameters) bool // the parameters are the record's
	before uint64                       // of a policy: an earlier version decided the quorum
	rules  []*activePolicy              // that may have decided it, where the caller knows
}

func behindInvitation(i store.Invitation) behind {
	return behind{
		record: i, what: "invitation of device " + i.Name, change: i.Change, kind: policy.DeviceInvite,
		fits: func(p change.Parameters) bool {
			asked, code, err := invitedDevice(p)
			return err == nil && code == i.Code && asked.Kind == i.Kind && asked.Name == i.Name && asked.Display == i.Display && asked.Floor == i.Floor
		},
	}
}

func behindAdmin(one store.Admin) behind {
	return behind{
		record: one, what: "administrator " + one.Name, change: one.Change, kind: policy.AdminAdd,
		fits: func(p change.Parameters) bool {
			return p.Text("name") == one.Name && bytes.Equal(p.Bytes("public_key"), one.Key[:])
		},
	}
}

func behindPolicy(row store.Policy) behind {
	return behind{
		record: row, what: fmt.Sprintf("policy %d", row.Version), change: row.Change, kind: policy.PolicyApply, before: row.Version,
		fits: func(p change.Parameters) bool { return bytes.Equal(p.Bytes("document"), row.Document) },
	}
}

// askedFor is nil where a record was asked for and countersigned by enough. Where it was
// not, the error wraps [ErrForged] and is reported.
func (a *Appliance) askedFor(ctx context.Context, b behind) error {
	err := a.findBehind(ctx, b)
	if errors.Is(err, ErrForged) {
		a.metrics.forged.Inc()
		a.log.Error("no change request stands behind a record", "record", b.what, "change", b.change.String(), "error", err)
	}
	return err
}

func (a *Appliance) findBehind(ctx context.Context, b behind) error {
	if b.change == (change.ID{}) {
		return a.unasked(ctx, b)
	}
	row, err := a.store.Change(ctx, b.change)
	if errors.Is(err, store.ErrNotFound) {
		return b.forged("there is no such request")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", b.what, err)
	}
	return a.judgeAgain(ctx, row, b)
}

// unasked decides of a record that names no change request: it is the one place for that
// choice. Policy 1 comes from init and has none; what a restore brought is vouched for by
// the signature of the backup; an administrator by his record MAC. A later policy is from
// before records named their requests: then its request is looked for. An invitation of
// that time is at its end.
func (a *Appliance) unasked(ctx context.Context, b behind) error {
	switch record := b.record.(type) {
	case store.Admin:
		return nil
	case store.Policy:
		restored := a.keys.Settings().RestoredAt
		if record.Version == 1 || !restored.IsZero() && !record.ActivatedAt.After(restored) {
			return nil
		}
		return a.searchBehind(ctx, b)
	default:
		return b.forged("it names no request")
	}
}

// allChanges is no limit to a list of requests.
const allChanges = math.MaxInt32

func (a *Appliance) searchBehind(ctx context.Context, b behind) error {
	all, err := a.store.ListChanges(ctx, allChanges)
	if err != nil {
		return fmt.Errorf("%s: %w", b.what, err)
	}
	for _, row := range all {
		b.change = row.ID
		if err := a.judgeAgain(ctx, row, b); !errors.Is(err, ErrForged) {
			return err
		}
	}
	return b.forged("it names no request, and none is for it")
}

func (b behind) forged(why string) error { return fmt.Errorf("%s: %s: %w", b.what, why, ErrForged) }

// judgeAgain judges the request behind a record: that it is one, for this record, was
// taken, and that as many countersigned it as were required when it was taken.
func (a *Appliance) judgeAgain(ctx context.Context, row store.Change, b behind) error {
	r, err := change.Parse(row.Document)
	switch {
	case err != nil, row.ID != b.change, change.HashOf(row.Document).ID() != b.change:
		return b.forged("its request is another document")
	case r.Domain != a.keys.Domain():
		return b.forged("its request is of another appliance")
	case r.Kind != b.kind, !b.fits(r.Parameters):
		return b.forged("its request is for something else")
	case row.State != store.ChangeTaken && row.State != store.ChangeExecuted:
		return b.forged("its request is " + string(row.State))
	}
	content := contentOf(row, b.before)
	if b.rules == nil && a.behind.has(content) {
		return nil
	}
	if b.rules == nil {
		if b.rules, err = a.rulesThen(ctx, r, b.before); err != nil {
			return err
		}
	}
	all, local, err := a.countersigners(ctx, row)
	if err != nil {
		return err
	}
	for _, rules := range b.rules {
		if rules.enough(row, r.Kind, all, local) {
			a.behind.add(content)
			return nil
		}
	}
	return b.forged(fmt.Sprintf("its request has %d countersignatures of administrators that verify", all))
}

// enough: so many administrators countersigned a request, and the admin socket did or did
// not. The row may say that more were required than the policy does, and not fewer.
func (p *activePolicy) enough(row store.Change, k policy.Kind, admins int, local bool) bool {
	if local && p.CountsLocal() {
		admins++
	}
	return admins >= max(p.Quorum(k).Administrators, row.Required)
}

// countersigners counts the administrators whose signature on a request verifies, whatever
// they may do now, and tells whether the admin socket gave its word.
func (a *Appliance) countersigners(ctx context.Context, row store.Change) (n int, local bool, err error) {
	admins, err := a.authenticAdmins(ctx)
	if err != nil {
		return 0, false, err
	}
	names := map[string]bool{}
	for _, s := range row.Signatures {
		name, err := a.signer(ctx, change.HashOf(row.Document), s, admins)
		if err != nil {
			return 0, false, err
		}
		names[name] = true
	}
	local = names[policy.Local]
	delete(names, policy.Local)
	delete(names, "")
	return len(names), local, nil
}

// rulesThen are the policies by which a request may have been taken. Its base is the hash
// of one of them and of what it is about; where that was nothing (a policy, a name that no
// device had) it tells which. Else it is the one that was in force when the request was
// made, for after a change of policy it is not taken: one, or several that came into force
// within that second. Of policies only those before it count. A version that is missing,
// as after a restore, is passed over; one that is forged is not.
func (a *Appliance) rulesThen(ctx context.Context, r change.Request, before uint64) ([]*activePolicy, error) {
	newest := before - 1
	if before == 0 {
		newest = a.policy.Load().version
	}
	made := time.Unix(int64(r.Created), 0)
	var inForce []*activePolicy
	var oldest *activePolicy
	for v := newest; v > 0; v-- {
		p, err := a.policyAt(ctx, v)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if base, err := baseOf(r.Kind, p.Policy, nil); err != nil || base == r.Base {
			return []*activePolicy{p}, err
		}
		earlier := oldest != nil && oldest.activated.Before(made)
		if oldest = p; !earlier && p.activated.Before(made.Add(time.Second)) {
			inForce = append(inForce, p)
		}
	}
	switch {
	case r.Kind == policy.PolicyApply: // whose base always tells
		return nil, nil
	case inForce == nil && oldest != nil: // a clock that was set back
		return []*activePolicy{oldest}, nil
	}
	return inForce, nil
}

// contentOf is a request with all that its judgement rests on.
func contentOf(row store.Change, before uint64) [32]byte {
	sum := sha256.New()
	_ = binary.Write(sum, binary.BigEndian, []uint64{before, uint64(row.Required), uint64(len(row.Document))}) // never fails, hash.Hash
	sum.Write(row.Document)
	for _, s := range row.Signatures {
		one := sha256.Sum256(append(slices.Clone(s.Signer[:]), s.Signature...))
		sum.Write(one[:])
	}
	return [32]byte(sum.Sum(nil))
}

// behindCache remembers requests that were judged and found good, so that no signature is
// verified twice. What was good once stays so.
type behindCache struct {
	mu   sync.Mutex
	good map[[32]byte]bool // guarded by mu
}

func (c *behindCache) has(content [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.good[content]
}

func (c *behindCache) add(content [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.good == nil || len(c.good) >= recordsKept {
		c.good = map[[32]byte]bool{}
	}
	c.good[content] = true
}
