package appliance

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/change"
	"countersign/policy"
)

// Effect is what a kind of change does once enough administrators have countersigned.
type Effect struct {
	// Base says what the change is based on: a value that det-CBOR can encode and
	// that differs when anything did that the administrators would want to look at
	// again. It also refuses parameters that make no sense, or cannot come true as
	// things are: its errors are the caller's answer, most of them [ErrInput].
	Base func(ctx context.Context, p change.Parameters) (any, error)
	// Do makes the change and gives what the caller is told of it. A record that it
	// makes names the request, by c.Hash.ID(), so that it can be judged again. It is called
	// once for a request, and again only if the appliance was interrupted, or the
	// token or the store was away, before its end was stored: then it has to find
	// out what was done, and go on from there or return an error. What it writes
	// carries its own audit record.
	Do func(ctx context.Context, c Change) (any, error)
}

// builtin are the effects of this package. Config.Effects has those of others.
func (a *Appliance) builtin() map[policy.Kind]Effect {
	return map[policy.Kind]Effect{
		policy.KeyDestroy:   {Base: a.keyBase, Do: a.destroyKey},
		policy.KeyBackup:    {Base: a.backupBase, Do: a.allowBackup},
		policy.RootRotate:   {Base: a.rootBase, Do: a.rotateRoot},
		policy.DeviceInvite: {Base: a.inviteBase, Do: a.inviteDevice},
		policy.AdminAdd:     {Base: a.addAdminBase, Do: a.addAdmin},
		policy.AdminRevoke:  {Base: a.revokeAdminBase, Do: a.revokeAdmin},
		policy.PolicyApply:  {Base: a.policyBase, Do: a.applyPolicy},
	}
}

func (a *Appliance) effect(k policy.Kind) (Effect, error) {
	e, ok := a.effects[k]
	if !ok {
		return e, fmt.Errorf("%w: this appliance does not do %s", ErrInput, k)
	}
	return e, nil
}

// baseDomain begins what a base is the hash of, CHANGE.md.
const baseDomain = "countersign base v1"

var baseMode = func() cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// base is the hash of the state that a change is asked for in.
func (a *Appliance) base(ctx context.Context, k policy.Kind, p change.Parameters) (sum [32]byte, err error) {
	e, err := a.effect(k)
	if err != nil {
		return sum, err
	}
	state, err := e.Base(ctx, p)
	if err != nil {
		return sum, err
	}
	return baseOf(k, a.policy.Load().Policy, state)
}

func baseOf(k policy.Kind, rules *policy.Policy, state any) (sum [32]byte, err error) {
	body, err := baseMode.Marshal([]any{k.String(), rules.Hash(), state})
	if err != nil {
		return sum, fmt.Errorf("base of %s: %w", k, err)
	}
	return sha256.Sum256(append([]byte(baseDomain), body...)), nil
}
