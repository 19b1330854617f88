package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
)

// Admins lists the administrators whom a change request added, by name. It reports and
// leaves out any other.
func (a *Appliance) Admins(ctx context.Context) ([]store.Admin, error) {
	all, err := a.store.ListAdmins(ctx)
	if err != nil {
		return nil, err
	}
	var countersigned []store.Admin
	for _, one := range all {
		err := a.askedFor(ctx, behindAdmin(one))
		if errors.Is(err, ErrForged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		countersigned = append(countersigned, one)
	}
	return countersigned, nil
}

// AdminNamed finds an administrator by name, or [store.ErrNotFound].
func (a *Appliance) AdminNamed(ctx context.Context, name string) (store.Admin, error) {
	all, err := a.Admins(ctx)
	return named(all, err, name, func(one store.Admin) string { return one.Name })
}

// AskAdmin is the change that adding an administrator is.
func AskAdmin(name string, key protocol.PublicKey) Ask {
	return Ask{Kind: policy.AdminAdd, Parameters: change.Parameters{"name": name, "public_key": key[:]}}
}

// AskResume is the change that ends the suspension of an administrator.
func (a *Appliance) AskResume(ctx context.Context, name string) (Ask, error) {
	one, err := a.AdminNamed(ctx, name)
	ask := AskAdmin(name, one.Key)
	ask.Parameters["resume"] = true
	return ask, err
}

// AskRevoke is the change that revoking an administrator is.
func (a *Appliance) AskRevoke(ctx context.Context, name string) (Ask, error) {
	one, err := a.AdminNamed(ctx, name)
	return Ask{Kind: policy.AdminRevoke, Parameters: change.Parameters{"name": name, "signer": one.ID[:]}}, err
}

// SuspendAdmin takes an administrator's vote away until it is given back, at once and
// without a quorum: it is the brake. Errors wrap [store.ErrNotFound], [ErrFinal] or
// [ErrInput] where nobody could undo it.
func (a *Appliance) SuspendAdmin(ctx context.Context, name string) (store.Admin, error) {
	a.changing.Lock() // of two at once, each would count on the other's vote
	defer a.changing.Unlock()
	return a.setAdmin(ctx, name, store.Suspended, change.ID{})
}

// setAdmin is called with changing held. by is the request that gives him his vote; zero
// where it is taken from him.
func (a *Appliance) setAdmin(ctx context.Context, name string, to store.Status, by change.ID) (store.Admin, error) {
	one, err := a.AdminNamed(ctx, name)
	switch {
	case err != nil || one.Status == to:
		return one, err
	case one.Status == store.Revoked:
		return one, fmt.Errorf("administrator %q: %w", name, ErrFinal)
	case to != store.Active:
		if err := a.keepsWay(ctx, a.policy.Load().Policy, name); err != nil {
			return one, err
		}
	}
	if one.Status, one.Version = to, one.Version+1; by != (change.ID{}) {
		one.Change = by
	}
	return one, a.store.UpdateAdmin(ctx, one, a.record(audit.KindAdmins, name, changed(to, one.Version)))
}

// able is how many can countersign, without one of them.
func (a *Appliance) able(ctx context.Context, rules *policy.Policy, without string) (int, error) {
	all, err := a.Admins(ctx)
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

// keepsWay refuses what would leave nobody able to add administrators nor to change the
// policy: no administrator could undo it.
func (a *Appliance) keepsWay(ctx context.Context, rules *policy.Policy, without string) error {
	n, err := a.able(ctx, rules, without)
	if err == nil && n < rules.Quorum(policy.AdminAdd).Administrators && n < rules.Quorum(policy.PolicyApply).Administrators {
		err = fmt.Errorf("%w: %d administrators would be left, too few for admin.add and for policy.apply", ErrInput, n)
	}
	return err
}

// roster is what changes of administrators are based on: all of them.
func (a *Appliance) roster(ctx context.Context) (any, error) {
	all, err := a.Admins(ctx)
	rows := []any{}
	for _, one := range all {
		rows = append(rows, []any{one.ID[:], one.Version})
	}
	return rows, err
}

func (a *Appliance) addAdminBase(ctx context.Context, p change.Parameters) (any, error) {
	name := p.Text("name")
	key, err := protocol.ParsePublicKey(p.Bytes("public_key"))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInput, err)
	}
	if name == policy.Local {
		return nil, fmt.Errorf("%w: %q is the admin socket", ErrInput, name)
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	all, err := a.Admins(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(one store.Admin) bool { return one.Name == name || one.Key == key })
	switch resume := p.Truth("resume"); {
	case i >= 0 && !resume:
		return nil, fmt.Errorf("administrator %q has this name or key: %w", all[i].Name, store.ErrExists)
	case resume && (i < 0 || all[i].Name != name || all[i].Key != key):
		return nil, fmt.Errorf("administrator %q: %w", name, store.ErrNotFound)
	case resume && all[i].Status == store.Revoked:
		return nil, fmt.Errorf("administrator %q: %w", name, ErrFinal)
	}
	return a.roster(ctx)
}

// addAdmin is found done by the row that it writes.
func (a *Appliance) addAdmin(ctx context.Context, c Change) (any, error) {
	p := c.Parameters
	if p.Truth("resume") {
		one, err := a.setAdmin(ctx, p.Text("name"), store.Active, c.Hash.ID())
		return one, err
	}
	key, err := protocol.ParsePublicKey(p.Bytes("public_key"))
	if err != nil {
		return nil, err
	}
	if one, err := a.AdminNamed(ctx, p.Text("name")); !errors.Is(err, store.ErrNotFound) {
		if err == nil && one.Key != key {
			err = store.ErrExists
		}
		return one, err
	}
	one := store.Admin{
		ID: change.SignerOf(key), Name: p.Text("name"), Key: key, Status: store.Active, Version: 1, CreatedAt: store.Stamp(a.now()),
		Change: c.Hash.ID(),
	}
	fields := map[string]any{"event": "added", "public_key": key[:]}
	return one, a.store.AddAdmin(ctx, one, a.record(audit.KindAdmins, one.Name, fields))
}

func (a *Appliance) revokeAdminBase(ctx context.Context, p change.Parameters) (any, error) {
	one, err := a.AdminNamed(ctx, p.Text("name"))
	switch {
	case err != nil:
		return nil, err
	case string(one.ID[:]) != string(p.Bytes("signer")):
		return nil, fmt.Errorf("administrator %q with that key: %w", one.Name, store.ErrNotFound)
	case one.Status == store.Revoked:
		return nil, fmt.Errorf("administrator %q: %w", one.Name, ErrFinal)
	}
	if err := a.keepsWay(ctx, a.policy.Load().Policy, one.Name); err != nil {
		return nil, err
	}
	return a.roster(ctx)
}

func (a *Appliance) revokeAdmin(ctx context.Context, c Change) (any, error) {
	one, err := a.setAdmin(ctx, c.Parameters.Text("name"), store.Revoked, change.ID{})
	return one, err
}
