package appliance

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
)

// Sentinels of change requests.
var (
	// ErrQuorum: administrators are missing; the error is a [*Waiting].
	ErrQuorum = errors.New("more administrators have to countersign")
	// ErrOver: the request is not open any more, and is not opened again.
	ErrOver = errors.New("the request is over")
	// ErrSigner: the signature is by nobody who may countersign.
	ErrSigner = errors.New("not by an active administrator")
)

// Change is a change request as it stands.
type Change struct {
	change.Request
	Hash     change.Hash
	Document []byte
	State    store.ChangeState // "" of a dry run, of which nothing is stored
	Reason   string
	EndedAt  time.Time
	Ruling   policy.Ruling
	Required int
	Signed   []string // who countersigned and counts, by name
	Missing  []string // who could still
	Result   any      // what the effect gave, of the call that executed it
}

// Waiting is the error of a change that needs more administrators.
type Waiting struct{ Change }

func (w *Waiting) Error() string {
	return fmt.Sprintf("%s waits: %d of %d administrators, %d more", w.Kind, w.Ruling.Signed(), w.Required, w.Ruling.MissingAdministrators())
}

// Unwrap gives [ErrQuorum].
func (w *Waiting) Unwrap() error { return ErrQuorum }

// done is what a change came to: its result, or who is missing.
func (c Change) done() (any, error) {
	if c.State != store.ChangeExecuted {
		return nil, &Waiting{c}
	}
	return c.Result, nil
}

// Bounds of the list of requests: shown, and open at one time.
const (
	changesShown = 1000
	changesOpen  = 64
)

// Ask is a change that somebody at the admin socket asks for.
type Ask struct {
	Kind       policy.Kind
	Parameters change.Parameters
	Life       time.Duration // 0: [change.DefaultLife]
}

// Ask writes a change request, which the admin socket countersigns with that, and makes
// the change if no more is required. The same request that is still open is that one.
func (a *Appliance) Ask(ctx context.Context, ask Ask) (Change, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	r, err := a.request(ctx, ask)
	if err != nil {
		return Change{}, err
	}
	id, isOpen, err := a.sameOpen(ctx, r)
	switch {
	case err != nil:
		return Change{}, err
	case isOpen && a.policy.Load().CountsLocal():
		return a.signLocked(ctx, id, nil)
	case isOpen:
		return a.advanceLocked(ctx, id)
	}
	document := r.Marshal()
	id = change.HashOf(document).ID()
	row := store.Change{
		ID: id, Document: document, State: store.ChangeOpen, Signatures: []store.ChangeSignature{a.localWord()},
		CreatedAt: time.Unix(int64(r.Created), 0), ExpiresAt: time.Unix(int64(r.Expires), 0),
	}
	rec := changeRecord(id, map[string]any{"event": "requested", "kind": r.Kind.String(), "document": document})
	if err := a.store.AddChange(ctx, row, rec); err != nil {
		return Change{}, fmt.Errorf("asking for %s: %w", r.Kind, err)
	}
	return a.advanceLocked(ctx, id)
}

// Preview says what a change request would be and who would be missing, and stores
// nothing.
func (a *Appliance) Preview(ctx context.Context, ask Ask) (Change, error) {
	r, err := a.request(ctx, ask)
	if err != nil {
		return Change{}, err
	}
	document := r.Marshal()
	return a.view(ctx, store.Change{ID: change.HashOf(document).ID(), Document: document, Signatures: []store.ChangeSignature{a.localWord()}})
}

// request is the document of a change, made now.
func (a *Appliance) request(ctx context.Context, ask Ask) (change.Request, error) {
	if ask.Life == 0 {
		ask.Life = change.DefaultLife
	}
	if ask.Life < time.Second || ask.Life > change.MaxLife {
		return change.Request{}, fmt.Errorf("%w: a request is good for 1s to %v, not %v", ErrInput, change.MaxLife, ask.Life)
	}
	base, err := a.base(ctx, ask.Kind, ask.Parameters)
	if err != nil {
		return change.Request{}, err
	}
	now := uint64(a.now().Unix())
	r := change.Request{
		Version: change.Version, Kind: ask.Kind, Parameters: ask.Parameters, Domain: a.keys.Domain(), By: policy.Local,
		Created: now, Expires: now + uint64(ask.Life/time.Second), Base: base,
	}
	_, _ = rand.Read(r.Nonce[:]) // never fails, crypto/rand
	return change.Parse(r.Marshal())
}

// sameOpen finds an open request that asks for the same, and refuses one too many.
func (a *Appliance) sameOpen(ctx context.Context, r change.Request) (id change.ID, found bool, err error) {
	all, err := a.store.ListChanges(ctx, changesShown)
	if err != nil {
		return id, false, err
	}
	open := 0
	for _, row := range all {
		if row.State != store.ChangeOpen || !a.now().Before(row.ExpiresAt) {
			continue
		}
		open++
		other, err := change.Parse(row.Document)
		if err != nil {
			continue // nobody's: it takes no signature
		}
		other.Created, other.Expires, other.Nonce = r.Created, r.Expires, r.Nonce
		if bytes.Equal(other.Marshal(), r.Marshal()) {
			return row.ID, true, nil
		}
	}
	if open >= changesOpen {
		return id, false, fmt.Errorf("%w: %d requests are open: sign or withdraw some first", ErrInput, open)
	}
	return id, false, nil
}

// ChangeOf is a request by its id, or [store.ErrNotFound].
func (a *Appliance) ChangeOf(ctx context.Context, id change.ID) (Change, error) {
	row, err := a.store.Change(ctx, id)
	if err != nil {
		return Change{}, fmt.Errorf("change %s: %w", id, err)
	}
	return a.view(ctx, row)
}

// Changes lists requests, the newest first, without rows that are no request: the log
// tells of those.
func (a *Appliance) Changes(ctx context.Context) ([]Change, error) {
	rows, err := a.store.ListChanges(ctx, changesShown)
	if err != nil {
		return nil, err
	}
	var all []Change
	for _, row := range rows {
		c, err := a.view(ctx, row)
		if errors.Is(err, ErrForged) {
			a.log.Error("a row is no change request", "error", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// view reads a stored request and judges it as things are now. One of another appliance
// is over, whatever its row says.
func (a *Appliance) view(ctx context.Context, row store.Change) (Change, error) {
	hash := change.HashOf(row.Document)
	r, err := change.Parse(row.Document)
	if err != nil || hash.ID() != change.ID(row.ID) {
		return Change{}, fmt.Errorf("change %s: %w", change.ID(row.ID), errors.Join(err, ErrForged))
	}
	c := Change{Request: r, Hash: hash, Document: row.Document, State: row.State, Reason: row.Reason, EndedAt: row.EndedAt}
	if r.Domain != a.keys.Domain() { // the same operators may have signed it there
		c.State, c.Reason = store.ChangeFailed, fmt.Sprintf("of another appliance: its domain is %q", r.Domain)
		return c, nil
	}
	if c.State == store.ChangeOpen && a.over(r) {
		c.State = store.ChangeExpired
	}
	if c.EndedAt.IsZero() {
		return c, a.judge(ctx, &c, row.Signatures)
	}
	// It is history: policy and administrators may be others now.
	c.Required, c.Signed = row.Required, row.Signed
	c.Ruling = policy.Decide(policy.Requirement{Administrators: row.Required}, policy.Evidence{Verdict: protocol.Approve, Signers: row.Signed})
	return c, nil
}

func (a *Appliance) over(r change.Request) bool { return uint64(a.now().Unix()) >= r.Expires }

// WithdrawChange ends an open request. Errors wrap [store.ErrNotFound] or [ErrOver].
func (a *Appliance) WithdrawChange(ctx context.Context, id change.ID) (Change, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	c, err := a.openLocked(ctx, id)
	if err != nil {
		return c, err
	}
	if err := a.endLocked(ctx, c, store.ChangeWithdrawn); err != nil {
		return c, err
	}
	return a.ChangeOf(ctx, id)
}

// openLocked is a request that takes signatures. One whose time is over is ended.
func (a *Appliance) openLocked(ctx context.Context, id change.ID) (Change, error) {
	c, err := a.ChangeOf(ctx, id)
	switch {
	case err != nil:
		return c, err
	case c.State == store.ChangeExpired && c.EndedAt.IsZero():
		if err := a.endLocked(ctx, c, store.ChangeExpired); err != nil {
			return c, err
		}
		fallthrough
	case c.State != store.ChangeOpen:
		return c, fmt.Errorf("change %s is %s: %w", id, c.State, ErrOver)
	}
	return c, nil
}

// endLocked ends an open request that nothing was done for. c.Reason says why.
func (a *Appliance) endLocked(ctx context.Context, c Change, to store.ChangeState) error {
	return a.store.EndChange(ctx, a.step(c, store.ChangeOpen, to), a.transcript(ctx, c, to))
}

// step moves a request on, with what it stands at now.
func (a *Appliance) step(c Change, from, to store.ChangeState) store.ChangeEnd {
	return store.ChangeEnd{ID: c.Hash.ID(), From: from, To: to, Reason: c.Reason, Required: c.Required, Signed: c.Signed, At: a.now()}
}

// expireChanges ends the open requests whose time is over.
func (a *Appliance) expireChanges(ctx context.Context) {
	a.changing.Lock()
	defer a.changing.Unlock()
	all, err := a.store.ListChanges(ctx, changesShown)
	if err != nil {
		a.log.Error("change requests could not be read", "error", err)
		return
	}
	for _, row := range all {
		if row.State == store.ChangeOpen && !a.now().Before(row.ExpiresAt) {
			if _, err := a.openLocked(ctx, row.ID); !errors.Is(err, ErrOver) {
				a.log.Error("change request could not be ended", "change", change.ID(row.ID).String(), "error", err)
			}
		}
	}
}

func changeRecord(id change.ID, fields map[string]any) audit.Record {
	return audit.NewRecord(audit.KindChanges, "change/"+id.String(), fields)
}
