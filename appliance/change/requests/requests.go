// Package requests takes change requests through their quorum: an administrator asks,
// others countersign, and the effect that is registered for the kind of change is carried
// out once.
package requests

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/change"
	"countersign/appliance/change/quorum"
	"countersign/appliance/parties"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
)

// Errors of change requests.
var (
	// ErrQuorum: more administrators have to countersign; the error is a [*Waiting].
	ErrQuorum = errors.New("more administrators have to countersign")
	// ErrOver: the request is closed, and cannot be opened again.
	ErrOver = errors.New("the request is over")
	// ErrSigner: the signer may not countersign.
	ErrSigner = errors.New("not an active administrator")
)

// Service keeps the change requests of an appliance. It is safe for concurrent use.
type Service struct {
	store store.Store
	judge *quorum.Judge
	rules *rules.Rules
	log   hclog.Logger
	now   func() time.Time

	effects map[policy.Kind]Effect

	changing sync.Mutex         // held while a request changes, also while it waits for the keys
	using    map[change.ID]bool // grants in use; guarded by changing

	// Held while the status of an administrator changes, or something is decided by counting them. A
	// holder waits for the store only, so that a suspension never waits for the keys. It is locked after
	// changing, never before.
	admins sync.Mutex
}

// Config holds what a Service needs.
type Config struct {
	Store  store.Store
	Judge  *quorum.Judge
	Rules  *rules.Rules
	Logger hclog.Logger
	Now    func() time.Time
}

// New returns a service that can change administrators. The owners of other kinds of change
// call [Service.Register].
func New(c Config) *Service {
	s := &Service{store: c.Store, judge: c.Judge, rules: c.Rules, log: c.Logger, now: c.Now, using: map[change.ID]bool{}}
	s.effects = map[policy.Kind]Effect{
		policy.AdminAdd:    {Base: s.addAdminBase, Do: s.addAdmin},
		policy.AdminRevoke: {Base: s.revokeAdminBase, Do: s.revokeAdmin},
	}
	return s
}

// Register sets the effect of a kind of change. All effects are registered before the
// service is used.
func (s *Service) Register(k policy.Kind, e Effect) { s.effects[k] = e }

// Change is a change request with its present state.
type Change struct {
	change.Request
	Hash     change.Hash
	Document []byte
	State    store.ChangeState // "" for a dry run, which stores nothing
	Reason   string
	EndedAt  time.Time
	Granted  bool // it has its quorum, and waits for [Service.Use]
	Ruling   policy.Ruling
	Required int
	Signed   []string // names of the administrators whose signatures count
	Missing  []string // names of the administrators who could still sign
	Result   any      // result of the effect, in the call that executed it
	SignedAs string   // the administrator whose signature the call added; "" in any other call

	lastSigned time.Time
}

// Waiting is the error of a change that needs more administrators.
type Waiting struct{ Change }

func (w *Waiting) Error() string {
	return fmt.Sprintf("%s waits for %d more administrators: %d of %d have countersigned",
		w.Kind, w.Ruling.MissingAdministrators(), w.Ruling.Signed(), w.Required)
}

// Unwrap returns [ErrQuorum].
func (w *Waiting) Unwrap() error { return ErrQuorum }

// Done returns the result of an executed change, and a [*Waiting] error for any other.
func (c Change) Done() (any, error) {
	if c.State != store.ChangeExecuted {
		return nil, &Waiting{c}
	}
	return c.Result, nil
}

// Bounds of the list of requests: shown, and open at one time.
const (
	Shown       = 1000
	changesOpen = 64
)

// Ask writes a change request, which the admin socket countersigns at once, and carries out the
// change if no more signatures are required. If the same request is open already, Ask returns
// that one.
func (s *Service) Ask(ctx context.Context, d change.Draft) (Change, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	return s.askLocked(ctx, d)
}

func (s *Service) askLocked(ctx context.Context, d change.Draft) (Change, error) {
	r, err := s.request(ctx, d)
	if err != nil {
		return Change{}, err
	}
	id, isOpen, err := s.sameOpen(ctx, r)
	switch {
	case err != nil:
		return Change{}, err
	case isOpen && s.rules.Active().CountsLocal():
		return s.signLocked(ctx, id, nil)
	case isOpen:
		return s.advanceLocked(ctx, id)
	}
	document := r.Marshal()
	id = change.HashOf(document).ID()
	row := store.Change{
		ID: id, Document: document, State: store.ChangeOpen, Signatures: []store.ChangeSignature{s.localWord()},
		CreatedAt: time.Unix(int64(r.Created), 0), ExpiresAt: time.Unix(int64(r.Expires), 0),
	}
	rec := changeRecord(ctx, id, map[string]any{"event": "requested", "kind": r.Kind.String(), "document": document})
	if err := s.store.AddChange(ctx, row, rec); err != nil {
		return Change{}, fmt.Errorf("asking for %s: %w", r.Kind, err)
	}
	c, err := s.advanceLocked(ctx, id)
	if s.rules.Active().CountsLocal() {
		c.SignedAs = policy.Local
	}
	return c, err
}

// Preview returns the change request that Ask would write, with the administrators who would be
// missing, and stores nothing.
func (s *Service) Preview(ctx context.Context, d change.Draft) (Change, error) {
	r, err := s.request(ctx, d)
	if err != nil {
		return Change{}, err
	}
	document := r.Marshal()
	return s.view(ctx, store.Change{ID: change.HashOf(document).ID(), Document: document, Signatures: []store.ChangeSignature{s.localWord()}})
}

// request returns the document of a change, made now.
func (s *Service) request(ctx context.Context, d change.Draft) (change.Request, error) {
	if d.Life == 0 {
		d.Life = change.DefaultLife
	}
	if d.Life < time.Second || d.Life > change.MaxLife {
		return change.Request{}, fmt.Errorf("%w: administrators have 1s to %v to countersign, not %v", parties.ErrInput, change.MaxLife, d.Life)
	}
	now := uint64(s.now().Unix())
	r := change.Request{
		Version: change.Version, Kind: d.Kind, Parameters: d.Parameters, Domain: s.judge.Domain(), By: policy.Local,
		Created: now, Expires: now + uint64(d.Life/time.Second),
	}
	_, _ = rand.Read(r.Nonce[:]) // never fails, crypto/rand
	r, err := change.Parse(r.Marshal())
	if err == nil {
		r.Base, err = s.base(ctx, r.Kind, r.Parameters)
	}
	return r, err
}

// sameOpen finds an open request for the same change, and returns an error if too many requests
// are open.
func (s *Service) sameOpen(ctx context.Context, r change.Request) (id change.ID, found bool, err error) {
	all, err := s.store.ChangesInForce(ctx)
	if err != nil {
		return id, false, err
	}
	open := 0
	for _, row := range all {
		if row.State != store.ChangeOpen || !s.now().Before(row.ExpiresAt) {
			continue
		}
		open++
		other, err := change.Parse(row.Document)
		if err != nil {
			continue // it is forged and takes no signature
		}
		other.Created, other.Expires, other.Nonce = r.Created, r.Expires, r.Nonce
		if bytes.Equal(other.Marshal(), r.Marshal()) {
			return row.ID, true, nil
		}
	}
	if open >= changesOpen {
		return id, false, fmt.Errorf("%w: %d requests are open: sign or withdraw some first", parties.ErrInput, open)
	}
	return id, false, nil
}

// Get returns a request by its id, or [store.ErrNotFound].
func (s *Service) Get(ctx context.Context, id change.ID) (Change, error) {
	row, err := s.store.Change(ctx, id)
	if err != nil {
		return Change{}, fmt.Errorf("change %s: %w", id, err)
	}
	return s.view(ctx, row)
}

// List returns all requests in force and the newest of the others, newest first. It logs rows that
// are not requests and leaves them out.
func (s *Service) List(ctx context.Context) ([]Change, error) {
	rows, err := s.store.ListChanges(ctx, Shown)
	if err != nil {
		return nil, err
	}
	held, err := s.store.ChangesInForce(ctx)
	if err != nil {
		return nil, err
	}
	for _, one := range held { // older than all that are shown
		if !slices.ContainsFunc(rows, func(c store.Change) bool { return c.ID == one.ID }) {
			rows = append(rows, one)
		}
	}
	var all []Change
	for _, row := range rows {
		c, err := s.view(ctx, row)
		if errors.Is(err, store.ErrForged) {
			s.log.Error("a row is no change request", "error", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// view reads a stored request and counts its signatures under the present policy. A request of
// another appliance is closed, regardless of its row.
func (s *Service) view(ctx context.Context, row store.Change) (Change, error) {
	hash := change.HashOf(row.Document)
	r, err := change.Parse(row.Document)
	if err != nil || hash.ID() != change.ID(row.ID) {
		return Change{}, fmt.Errorf("change %s: %w", change.ID(row.ID), errors.Join(err, store.ErrForged))
	}
	c := Change{Request: r, Hash: hash, Document: row.Document, State: row.State, Reason: row.Reason, EndedAt: row.EndedAt}
	for _, one := range row.Signatures {
		if one.At.After(c.lastSigned) {
			c.lastSigned = one.At
		}
	}
	if r.Domain != s.judge.Domain() { // the same operators may have signed it there
		c.State, c.Reason = store.ChangeFailed, fmt.Sprintf("of another appliance: its domain is %q", r.Domain)
		return c, nil
	}
	if c.State == store.ChangeOpen && s.over(r) {
		c.State = store.ChangeExpired
	}
	c.Granted = c.State == store.ChangeTaken && s.effects[r.Kind].Grants
	if c.EndedAt.IsZero() {
		return c, s.count(ctx, &c, row.Signatures)
	}
	// Policy and administrators may have changed since it ended.
	c.Required, c.Signed = row.Required, row.Signed
	c.Ruling = policy.Decide(policy.Requirement{Administrators: row.Required}, policy.Evidence{Verdict: protocol.Approve, Signers: row.Signed})
	return c, nil
}

func (s *Service) over(r change.Request) bool { return uint64(s.now().Unix()) >= r.Expires }

// Withdraw closes an open request, or one that is granted and not in use. Errors wrap
// [store.ErrNotFound] or [ErrOver].
func (s *Service) Withdraw(ctx context.Context, id change.ID) (Change, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	c, err := s.Get(ctx, id)
	if err == nil && c.Granted && !s.using[id] {
		err = s.endTakenLocked(ctx, c, store.ChangeWithdrawn)
	} else if err == nil {
		if c, err = s.openLocked(ctx, id); err == nil {
			err = s.endLocked(ctx, c, store.ChangeWithdrawn)
		}
	}
	if err != nil {
		return c, err
	}
	return s.Get(ctx, id)
}

// openLocked returns a request that takes signatures. It closes one that has expired.
func (s *Service) openLocked(ctx context.Context, id change.ID) (Change, error) {
	c, err := s.Get(ctx, id)
	switch {
	case err != nil:
		return c, err
	case c.State == store.ChangeExpired && c.EndedAt.IsZero():
		if err := s.endLocked(ctx, c, store.ChangeExpired); err != nil {
			return c, err
		}
		fallthrough
	case c.State != store.ChangeOpen:
		return c, fmt.Errorf("change %s is %s: %w", id, c.State, ErrOver)
	}
	return c, nil
}

// endLocked closes an open request whose effect did not run, for the reason c.Reason.
func (s *Service) endLocked(ctx context.Context, c Change, to store.ChangeState) error {
	return s.store.EndChange(ctx, s.step(c, store.ChangeOpen, to), s.transcript(ctx, c, to))
}

// step moves a request to another state.
func (s *Service) step(c Change, from, to store.ChangeState) store.ChangeEnd {
	return store.ChangeEnd{ID: c.Hash.ID(), From: from, To: to, Reason: c.Reason, Required: c.Required, Signed: c.Signed, At: s.now()}
}

// Expire closes the open requests that have expired.
func (s *Service) Expire(ctx context.Context) {
	s.changing.Lock()
	defer s.changing.Unlock()
	all, err := s.store.ChangesInForce(ctx)
	if err != nil {
		s.log.Error("change requests could not be read", "error", err)
		return
	}
	for _, row := range all {
		if row.State == store.ChangeOpen && !s.now().Before(row.ExpiresAt) {
			if _, err := s.openLocked(ctx, row.ID); !errors.Is(err, ErrOver) {
				s.log.Error("change request could not be ended", "change", change.ID(row.ID).String(), "error", err)
			}
		}
	}
}

func changeRecord(ctx context.Context, id change.ID, fields map[string]any) audit.Record {
	return audit.Act(ctx, audit.KindChanges, "change/"+id.String(), fields)
}
