package server

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"countersign/appliance"
	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/protocol"
)

// Requests keeps change requests and makes changes.
type Requests interface {
	Changes(ctx context.Context) ([]appliance.Change, error)
	ChangeOf(ctx context.Context, id change.ID) (appliance.Change, error)
	SignChange(ctx context.Context, id change.ID, signature []byte) (appliance.Change, error)
	WithdrawChange(ctx context.Context, id change.ID) (appliance.Change, error)
	Preview(ctx context.Context, ask appliance.Ask) (appliance.Change, error)
	Ask(ctx context.Context, ask appliance.Ask) (appliance.Change, error)
	SuspendAdmin(ctx context.Context, name string) (store.Admin, error)
	AskResume(ctx context.Context, name string) (appliance.Ask, error)
	AskRevoke(ctx context.Context, name string) (appliance.Ask, error)
}

// Administrators reads the administrators.
type Administrators interface {
	Admins(ctx context.Context) ([]store.Admin, error)
	AdminNamed(ctx context.Context, name string) (store.Admin, error)
}

// Policies reads the active policy.
type Policies interface {
	Policy(ctx context.Context) (appliance.Policy, error)
}

func (s *Server) bindChanges(m *mux) {
	r := adminapi.Routes
	bind(m, r.ChangeList, func(r *http.Request, _ adminapi.None) ([]adminapi.Change, error) {
		all, err := s.Requests.Changes(r.Context())
		return each(all, changeJSON), err
	})
	bind(m, r.ChangeShow, oneChange(s.Requests.ChangeOf))
	bind(m, r.ChangeSign, s.signChange)
	bind(m, r.ChangeWithdraw, oneChange(s.Requests.WithdrawChange))
	bind(m, r.AdminList, func(r *http.Request, _ adminapi.None) ([]adminapi.Administrator, error) {
		all, err := s.Administrators.Admins(r.Context())
		return each(all, administratorJSON), err
	})
	bind(m, r.AdminShow, oneAdmin(s.Administrators.AdminNamed))
	bind(m, r.AdminSuspend, oneAdmin(s.Requests.SuspendAdmin))
	bindPreviewed(m, r.AdminAdd, s.addAdmin)
	bindPreviewed(m, r.AdminResume, s.askForAdmin(s.Requests.AskResume))
	bindPreviewed(m, r.AdminRevoke, s.askForAdmin(s.Requests.AskRevoke))
	bind(m, r.PolicyShow, func(r *http.Request, _ adminapi.None) (adminapi.Policy, error) {
		p, err := s.Policies.Policy(r.Context())
		return policyJSON(p), err
	})
	bindPreviewed(m, r.PolicyApply, s.applyPolicy)
}

func changeID(r *http.Request) (change.ID, error) {
	id, err := change.ParseID(r.PathValue("id"))
	if err != nil {
		err = fmt.Errorf("%w: %v", appliance.ErrInput, err)
	}
	return id, err
}

// oneChange answers with the change request that get returns.
func oneChange(get func(context.Context, change.ID) (appliance.Change, error)) handler[adminapi.None, adminapi.Change] {
	return func(r *http.Request, _ adminapi.None) (adminapi.Change, error) {
		id, err := changeID(r)
		if err != nil {
			return adminapi.Change{}, err
		}
		c, err := get(r.Context(), id)
		return changeJSON(c), err
	}
}

// signChange answers with a quorum problem while the request needs more signatures.
func (s *Server) signChange(r *http.Request, body adminapi.Sign) (adminapi.Change, error) {
	return oneChange(func(ctx context.Context, id change.ID) (appliance.Change, error) {
		c, err := s.Requests.SignChange(ctx, id, body.Signature)
		if err == nil && c.State == store.ChangeOpen {
			err = &appliance.Waiting{Change: c}
		}
		return c, err
	})(r, adminapi.None{})
}

func changeJSON(c appliance.Change) adminapi.Change {
	out := adminapi.Change{
		ID: c.Hash.ID().String(), Hash: c.Hash.String(), Kind: c.Kind.String(), Parameters: map[string]any{}, Document: c.Document,
		State: string(c.State), Reason: c.Reason, By: c.By, Required: c.Required, More: c.Ruling.MissingAdministrators(),
		Signed: append([]string{}, c.Signed...), Missing: append([]string{}, c.Missing...),
		CreatedAt: time.Unix(int64(c.Created), 0).UTC(), ExpiresAt: time.Unix(int64(c.Expires), 0).UTC(), EndedAt: when(c.EndedAt),
	}
	if out.State == "" {
		out.State = "dry-run"
	}
	for name, value := range c.Parameters {
		if b, ok := value.([]byte); ok {
			value = hex.EncodeToString(b)
		}
		out.Parameters[name] = value
	}
	return out
}

// lifeOf returns how long administrators may countersign, ?life_s=SECONDS; 0 is the default.
func lifeOf(r *http.Request) (time.Duration, error) {
	seconds, err := queryNumber(r, "life_s", 0)
	most := uint64(change.MaxLife / time.Second)
	if err == nil && (seconds > most || seconds == 0 && r.URL.Query().Has("life_s")) {
		err = fmt.Errorf("%w: life_s %d: want 1 to %d", appliance.ErrInput, seconds, most)
	}
	return time.Duration(seconds) * time.Second, err
}

// ask makes a change, or with dry previews it; result translates the result of the change.
func ask[Res any](
	s *Server, r *http.Request, a appliance.Ask, dry bool, result func(any) Res,
) (preview *adminapi.Change, out Res, err error) {
	if a.Life, err = lifeOf(r); err != nil {
		return nil, out, err
	}
	if dry {
		c, err := s.Requests.Preview(r.Context(), a)
		preview := changeJSON(c)
		return &preview, out, err
	}
	c, err := s.Requests.Ask(r.Context(), a)
	if err == nil && c.State != store.ChangeExecuted {
		err = &appliance.Waiting{Change: c}
	}
	if err != nil {
		return nil, out, err
	}
	return nil, result(c.Result), nil
}

// administered is the handler of a change of an administrator.
type administered = func(r *http.Request, body adminapi.Administer) (*adminapi.Change, adminapi.Administrator, error)

func (s *Server) addAdmin(r *http.Request, body adminapi.Administer) (*adminapi.Change, adminapi.Administrator, error) {
	key, err := publicKey(body.PublicKey)
	if err != nil {
		return nil, adminapi.Administrator{}, fmt.Errorf("%w: public_key: %v", appliance.ErrInput, err)
	}
	return ask(s, r, appliance.AskAdmin(r.PathValue("name"), key), body.DryRun, administratorOf)
}

// publicKey parses a point of P-256 in hex, compressed or not.
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

func (s *Server) askForAdmin(asking func(context.Context, string) (appliance.Ask, error)) administered {
	return func(r *http.Request, body adminapi.Administer) (*adminapi.Change, adminapi.Administrator, error) {
		a, err := asking(r.Context(), r.PathValue("name"))
		if err != nil {
			return nil, adminapi.Administrator{}, err
		}
		return ask(s, r, a, body.DryRun, administratorOf)
	}
}

// oneAdmin answers with the administrator that get returns.
func oneAdmin(get func(context.Context, string) (store.Admin, error)) handler[adminapi.None, adminapi.Administrator] {
	return func(r *http.Request, _ adminapi.None) (adminapi.Administrator, error) {
		a, err := get(r.Context(), r.PathValue("name"))
		return administratorJSON(a), err
	}
}

func administratorOf(result any) adminapi.Administrator {
	a, _ := result.(store.Admin)
	return administratorJSON(a)
}

func administratorJSON(a store.Admin) adminapi.Administrator {
	return adminapi.Administrator{
		Name: a.Name, Signer: hex.EncodeToString(a.ID[:]), PublicKey: a.Key.String(), Status: a.Status.String(),
		Version: a.Version, CreatedAt: a.CreatedAt,
	}
}

func (s *Server) applyPolicy(r *http.Request, body adminapi.Apply) (*adminapi.Change, adminapi.Policy, error) {
	return ask(s, r, appliance.AskPolicy([]byte(body.Document)), body.DryRun, func(result any) adminapi.Policy {
		p, _ := result.(appliance.Policy)
		return policyJSON(p)
	})
}

func policyJSON(p appliance.Policy) adminapi.Policy {
	return adminapi.Policy{
		Version: p.Version, Hash: hex.EncodeToString(p.Hash[:]), ActivatedAt: p.ActivatedAt, Document: string(p.Document),
		Quorums: each(p.Quorums, func(q appliance.Quorum) adminapi.Quorum {
			return adminapi.Quorum{Kind: q.Kind.String(), Required: q.Required, Able: q.Able}
		}),
	}
}
