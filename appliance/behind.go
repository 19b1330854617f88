package appliance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/policy"
)

// behind is a record that a change request made. The record names the request, and the
// signatures of the request are judged again where the record is used: a seal shows that
// an appliance wrote the record, and the signatures that administrators wanted it.
type behind struct {
	what   string
	change change.ID // that the record names; zero: none
	kind   policy.Kind
	fits   func(change.Parameters) bool // the parameters are the record's
	free   bool                         // the record may have none behind it
}

func behindInvitation(i store.Invitation) behind {
	return behind{
		what: "invitation of device " + i.Name, change: i.Change, kind: policy.DeviceInvite,
		fits: func(p change.Parameters) bool {
			asked, code, err := invitedDevice(p)
			return err == nil && code == i.Code && asked.Kind == i.Kind && asked.Name == i.Name && asked.Display == i.Display && asked.Floor == i.Floor
		},
	}
}

// behindAdmin: an administrator who was sealed by a migration has no request behind him.
// The administrator who migrated has confirmed him.
func behindAdmin(one store.Admin) behind {
	return behind{
		what: "administrator " + one.Name, change: one.Change, kind: policy.AdminAdd, free: true,
		fits: func(p change.Parameters) bool {
			return p.Text("name") == one.Name && bytes.Equal(p.Bytes("public_key"), one.Key[:])
		},
	}
}

// behindPolicy: the first policy, one that was sealed by a migration and one that a restore
// brought back from a backup have no request behind them.
func behindPolicy(row store.Policy) behind {
	return behind{
		what: fmt.Sprintf("policy %d", row.Version), change: row.Change, kind: policy.PolicyApply, free: true,
		fits: func(p change.Parameters) bool { return bytes.Equal(p.Bytes("document"), row.Document) },
	}
}

// askedFor returns nil where enough administrators asked for a record. Otherwise the error
// wraps [ErrForged], and the alarm has heard of it.
func (a *Appliance) askedFor(ctx context.Context, b behind) error {
	if b.change == (change.ID{}) {
		if b.free {
			return nil
		}
		return a.unasked(b, "it names no change request")
	}
	row, err := a.store.Change(ctx, b.change)
	if errors.Is(err, store.ErrNotFound) {
		return a.unasked(b, "there is no such change request")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", b.what, err)
	}
	return a.judgeAgain(ctx, row, b)
}

func (a *Appliance) unasked(b behind, why string) error {
	return a.seals.Report(fmt.Sprintf("%s, change %s: %s", b.what, b.change, why))
}

// judgeAgain judges the request behind a record: that it is one, for this record, was
// taken, and that as many countersigned it as were required when it was taken. An
// administrator who was suspended or revoked since has countersigned it all the same.
func (a *Appliance) judgeAgain(ctx context.Context, row store.Change, b behind) error {
	r, err := change.Parse(row.Document)
	switch {
	case err != nil, row.ID != b.change, change.HashOf(row.Document).ID() != b.change:
		return a.unasked(b, "the request is another document")
	case r.Domain != a.keys.Domain():
		return a.unasked(b, "the request is of another appliance")
	case r.Kind != b.kind, !b.fits(r.Parameters):
		return a.unasked(b, "the request asks for something else")
	case row.State != store.ChangeTaken && row.State != store.ChangeExecuted:
		return a.unasked(b, "the request is "+string(row.State))
	}
	content := contentOf(row)
	if a.behind.has(content) {
		return nil
	}
	admins, err := a.store.ListAdmins(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", b.what, err)
	}
	signers := map[string]bool{}
	for _, s := range row.Signatures {
		if name := signer(change.HashOf(row.Document), s, admins); slices.Contains(row.Signed, name) {
			signers[name] = true
		}
	}
	if len(signers) < max(row.Required, 1) {
		return a.unasked(b, fmt.Sprintf("the request has %d countersignatures that verify, and %d were required", len(signers), row.Required))
	}
	a.behind.add(content)
	return nil
}

// contentOf is a request with all that its judgement rests on.
func contentOf(row store.Change) [32]byte {
	sum := sha256.New()
	_ = binary.Write(sum, binary.BigEndian, []uint64{uint64(row.Required), uint64(len(row.Document)), uint64(len(row.Signed))}) // never fails, hash.Hash
	sum.Write(row.Document)
	for _, name := range row.Signed {
		one := sha256.Sum256([]byte(name))
		sum.Write(one[:])
	}
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
