package httpapi

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"countersign/appliance"
	"countersign/appliance/admin"
	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/protocol"
)

// quorumRoutes are those of change requests, administrators and policy.
func (a *Admin) quorumRoutes() map[string]adminProcess {
	return map[string]adminProcess{
		"GET change":                a.changes,
		"GET change/{id}":           a.change,
		"POST change/{id}/sign":     a.signChange,
		"POST change/{id}/withdraw": a.withdrawChange,
		"GET admin":                 a.admins,
		"GET admin/{name}":          a.admin,
		"POST admin/{name}/add":     a.addAdmin,
		"POST admin/{name}/suspend": a.suspendAdmin,
		"POST admin/{name}/resume":  a.askForAdmin(a.Appliance.AskResume),
		"POST admin/{name}/revoke":  a.askForAdmin(a.Appliance.AskRevoke),
		"GET policy":                a.policy,
		"POST policy/apply":         a.applyPolicy,
	}
}

func (a *Admin) changes(r *http.Request) (any, error) {
	all, err := a.Appliance.Changes(r.Context())
	out := []admin.Change{}
	for _, c := range all {
		out = append(out, changeWords(c))
	}
	return out, err
}

func changeID(r *http.Request) (change.ID, error) {
	id, err := change.ParseID(r.PathValue("id"))
	if err != nil {
		err = fmt.Errorf("%w: %v", appliance.ErrInput, err)
	}
	return id, err
}

func (a *Admin) change(r *http.Request) (any, error) {
	id, err := changeID(r)
	if err != nil {
		return nil, err
	}
	c, err := a.Appliance.ChangeOf(r.Context(), id)
	return changeWords(c), err
}

func (a *Admin) signChange(r *http.Request) (any, error) {
	id, err := changeID(r)
	if err != nil {
		return nil, err
	}
	var req admin.Sign
	if err := decodeBody(r, &req); err != nil {
		return nil, err
	}
	c, err := a.Appliance.SignChange(r.Context(), id, req.Signature)
	if err == nil && c.State == store.ChangeOpen {
		err = &appliance.Waiting{Change: c}
	}
	return changeWords(c), err
}

func (a *Admin) withdrawChange(r *http.Request) (any, error) {
	id, err := changeID(r)
	if err != nil {
		return nil, err
	}
	c, err := a.Appliance.WithdrawChange(r.Context(), id)
	return changeWords(c), err
}

func changeWords(c appliance.Change) admin.Change {
	w := admin.Change{
		ID: c.Hash.ID().String(), Hash: c.Hash.String(), Kind: c.Kind.String(), Parameters: map[string]any{}, Document: c.Document,
		State: string(c.State), Reason: c.Reason, By: c.By, Required: c.Required, More: c.Decision.MissingAdministrators(),
		Signed: append([]string{}, c.Signed...), Missing: append([]string{}, c.Missing...),
		CreatedAt: time.Unix(int64(c.Created), 0).UTC(), ExpiresAt: time.Unix(int64(c.Expires), 0).UTC(), EndedAt: when(c.EndedAt),
	}
	if w.State == "" {
		w.State = "dry-run"
	}
	for name, value := range c.Parameters {
		if b, ok := value.([]byte); ok {
			value = hex.EncodeToString(b)
		}
		w.Parameters[name] = value
	}
	return w
}

// lifeOf is how long administrators may countersign what is asked for: ?life_s=SECONDS
// of every verb that may take a quorum; 0 is the default.
func lifeOf(r *http.Request) (time.Duration, error) {
	seconds, err := queryNumber(r, "life_s", 0)
	most := uint64(change.MaxLife / time.Second)
	if err == nil && (seconds > most || seconds == 0 && r.URL.Query().Has("life_s")) {
		err = fmt.Errorf("%w: life_s %d: want 1 to %d", appliance.ErrInput, seconds, most)
	}
	return time.Duration(seconds) * time.Second, err
}

// ask makes a change or only says what it would be; words turns its result into those
// of the API.
func (a *Admin) ask(r *http.Request, ask appliance.Ask, dry bool, words func(any) any) (any, error) {
	var err error
	if ask.Life, err = lifeOf(r); err != nil {
		return nil, err
	}
	if dry {
		c, err := a.Appliance.Preview(r.Context(), ask)
		return changeWords(c), err
	}
	c, err := a.Appliance.Ask(r.Context(), ask)
	if err == nil && c.State != store.ChangeExecuted {
		err = &appliance.Waiting{Change: c}
	}
	if err != nil {
		return nil, err
	}
	return words(c.Result), nil
}

func (a *Admin) admins(r *http.Request) (any, error) {
	all, err := a.Appliance.Admins(r.Context())
	out := []admin.Administrator{}
	for _, one := range all {
		out = append(out, administratorWords(one))
	}
	return out, err
}

func (a *Admin) admin(r *http.Request) (any, error) {
	one, err := a.Appliance.AdminNamed(r.Context(), r.PathValue("name"))
	return administratorWords(one), err
}

func (a *Admin) addAdmin(r *http.Request) (any, error) {
	var req admin.Administer
	if err := decodeBody(r, &req); err != nil {
		return nil, err
	}
	key, err := publicKey(req.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: public_key: %v", appliance.ErrInput, err)
	}
	return a.ask(r, appliance.AskAdmin(r.PathValue("name"), key), req.DryRun, administratorOf)
}

// publicKey reads a point of P-256 in hex, compressed or not.
func publicKey(s string) (key protocol.PublicKey, err error) {
	raw, err := hex.DecodeString(s)
	switch {
	case err != nil:
		return key, err
	case len(raw) == len(key):
		return protocol.ParsePublicKey(raw)
	}
	return protocol.CompressPoint(raw)
}

func (a *Admin) suspendAdmin(r *http.Request) (any, error) {
	one, err := a.Appliance.SuspendAdmin(r.Context(), r.PathValue("name"))
	return administratorWords(one), err
}

func (a *Admin) askForAdmin(asking func(context.Context, string) (appliance.Ask, error)) adminProcess {
	return func(r *http.Request) (any, error) {
		var req admin.Administer
		if err := decodeBody(r, &req); err != nil {
			return nil, err
		}
		ask, err := asking(r.Context(), r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		return a.ask(r, ask, req.DryRun, administratorOf)
	}
}

func administratorOf(result any) any {
	one, _ := result.(store.Admin)
	return administratorWords(one)
}

func administratorWords(one store.Admin) admin.Administrator {
	return admin.Administrator{
		Name: one.Name, Signer: hex.EncodeToString(one.ID[:]), PublicKey: one.Key.String(), Status: one.Status.String(),
		Version: one.Version, CreatedAt: one.CreatedAt,
	}
}

func (a *Admin) policy(r *http.Request) (any, error) {
	p, err := a.Appliance.Policy(r.Context())
	return policyWords(p), err
}

func (a *Admin) applyPolicy(r *http.Request) (any, error) {
	var req admin.Apply
	if err := decodeBody(r, &req); err != nil {
		return nil, err
	}
	return a.ask(r, appliance.AskPolicy([]byte(req.Document)), req.DryRun, func(result any) any {
		p, _ := result.(appliance.Policy)
		return policyWords(p)
	})
}

func policyWords(p appliance.Policy) admin.Policy {
	w := admin.Policy{
		Version: p.Version, Hash: hex.EncodeToString(p.Hash[:]), ActivatedAt: p.ActivatedAt, Document: string(p.Document), Quorums: []admin.Quorum{},
	}
	for _, q := range p.Quorums {
		w.Quorums = append(w.Quorums, admin.Quorum{Kind: q.Kind.String(), Required: q.Required, Able: q.Able})
	}
	return w
}
