package server

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/appliance/change/quorum"
	"countersign/appliance/change/requests"
	"countersign/appliance/parties"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/protocol"
)

func (s *Server) bindChanges(m *mux) {
	r, a := adminapi.Routes, s.Appliance
	bind(m, r.ChangeList, many(a.Requests.List, changeJSON))
	bind(m, r.ChangeShow, oneChange(a.Requests.Get))
	bind(m, r.ChangeSign, s.signChange)
	bind(m, r.ChangeWithdraw, oneChange(a.Requests.Withdraw))
	bind(m, r.AdminList, many(a.Quorum.Admins, administratorJSON))
	bind(m, r.AdminShow, one(a.Quorum.AdminNamed, administratorJSON))
	bind(m, r.AdminSuspend, one(a.Requests.SuspendAdmin, administratorJSON))
	bindPreviewed(m, r.AdminAdd, s.addAdmin)
	bindPreviewed(m, r.AdminResume, s.askForAdmin(a.Requests.DraftResume))
	bindPreviewed(m, r.AdminRevoke, s.askForAdmin(a.Requests.DraftRevoke))
	bind(m, r.PolicyShow, func(r *http.Request, _ adminapi.None) (adminapi.Policy, error) {
		p, err := a.Rules.Policy(r.Context())
		return policyJSON(p), err
	})
	bind(m, r.PolicyAt, s.policyAt)
	bind(m, r.PolicyHistory, many(a.Rules.History, func(p rules.Policy) adminapi.PolicyVersion { return policyJSON(p).PolicyVersion }))
	bindPreviewed(m, r.PolicyApply, s.applyPolicy)
}

// oneChange answers with the change request that get returns.
func oneChange(get func(context.Context, change.ID) (requests.Change, error)) handler[adminapi.None, adminapi.Change] {
	return func(r *http.Request, _ adminapi.None) (adminapi.Change, error) {
		id, err := change.ParseID(r.PathValue("id"))
		if err != nil {
			return adminapi.Change{}, fmt.Errorf("%w: %v", parties.ErrInput, err)
		}
		c, err := get(r.Context(), id)
		return changeJSON(c), err
	}
}

// signChange answers with the request, which stays open while it needs more signatures.
func (s *Server) signChange(r *http.Request, body adminapi.Sign) (adminapi.Change, error) {
	return oneChange(func(ctx context.Context, id change.ID) (requests.Change, error) {
		return s.Appliance.Requests.Sign(ctx, id, body.Signature)
	})(r, adminapi.None{})
}

func changeJSON(c requests.Change) adminapi.Change {
	return adminapi.Change{
		ID: c.Hash.ID().String(), Hash: c.Hash.String(), Kind: c.Kind.String(), Parameters: parametersJSON(c.Parameters), Document: c.Document,
		State: stateOf(c), Reason: c.Reason, By: c.By, Effect: c.Effect(), CountersignedAs: c.SignedAs,
		Required: c.Required, More: c.Ruling.MissingAdministrators(),
		Signed: append([]string{}, c.Signed...), Missing: append([]string{}, c.Missing...),
		CreatedAt: time.Unix(int64(c.Created), 0).UTC(), ExpiresAt: time.Unix(int64(c.Expires), 0).UTC(), EndedAt: when(c.EndedAt),
	}
}

// parametersJSON returns the parameters of a request, byte strings in hexadecimal.
func parametersJSON(p change.Parameters) map[string]any {
	out := map[string]any{}
	for name, value := range p {
		if b, ok := value.([]byte); ok {
			value = hex.EncodeToString(b)
		}
		out[name] = value
	}
	return out
}

func stateOf(c requests.Change) string {
	switch {
	case c.State == "":
		return "dry-run"
	case c.Granted:
		return "granted"
	}
	return string(c.State)
}

// lifeOf returns how long administrators may countersign, ?life_s=SECONDS; 0 is the default.
func lifeOf(r *http.Request) (time.Duration, error) {
	seconds, err := queryNumber(r, "life_s", 0)
	most := uint64(change.MaxLife / time.Second)
	if err == nil && (seconds > most || seconds == 0 && r.URL.Query().Has("life_s")) {
		err = fmt.Errorf("%w: life_s %d: want 1 to %d", parties.ErrInput, seconds, most)
	}
	return time.Duration(seconds) * time.Second, err
}

// ask makes a change, or with dry previews it; result translates the result of the change.
func ask[Res any](
	s *Server, r *http.Request, a change.Draft, dry bool, result func(any) Res,
) (preview *adminapi.Change, out Res, err error) {
	if a.Life, err = lifeOf(r); err != nil {
		return nil, out, err
	}
	if dry {
		c, err := s.Appliance.Requests.Preview(r.Context(), a)
		preview := changeJSON(c)
		return &preview, out, err
	}
	c, err := s.Appliance.Requests.Ask(r.Context(), a)
	if err == nil && c.State != store.ChangeExecuted {
		err = &requests.Waiting{Change: c}
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
		return nil, adminapi.Administrator{}, fmt.Errorf("%w: public_key: %v", parties.ErrInput, err)
	}
	return ask(s, r, requests.DraftAdmin(r.PathValue("name"), key), body.DryRun, administratorOf)
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

func (s *Server) askForAdmin(asking func(context.Context, string) (change.Draft, error)) administered {
	return func(r *http.Request, body adminapi.Administer) (*adminapi.Change, adminapi.Administrator, error) {
		a, err := asking(r.Context(), r.PathValue("name"))
		if err != nil {
			return nil, adminapi.Administrator{}, err
		}
		return ask(s, r, a, body.DryRun, administratorOf)
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
	return ask(s, r, rules.Draft([]byte(body.Document)), body.DryRun, func(result any) adminapi.Policy {
		p, _ := result.(rules.Policy)
		return policyJSON(p)
	})
}

func policyJSON(p rules.Policy) adminapi.Policy {
	out := adminapi.Policy{
		PolicyVersion: adminapi.PolicyVersion{Version: p.Version, Hash: hex.EncodeToString(p.Hash[:]), ActivatedAt: p.ActivatedAt},
		Document:      string(p.Document),
		Quorums: each(p.Quorums, func(q quorum.Quorum) adminapi.Quorum {
			return adminapi.Quorum{Kind: q.Kind.String(), Required: q.Required, Able: q.Able}
		}),
	}
	if id := change.ID(p.Change); id != (change.ID{}) {
		out.Change = id.String()
	}
	return out
}

func (s *Server) policyAt(r *http.Request, _ adminapi.None) (adminapi.Policy, error) {
	version, err := strconv.ParseUint(r.PathValue("version"), 10, 63)
	if err != nil {
		return adminapi.Policy{}, fmt.Errorf("%w: policy version %q: want a number", parties.ErrInput, r.PathValue("version"))
	}
	p, err := s.Appliance.Rules.PolicyAt(r.Context(), version)
	return policyJSON(p), err
}
