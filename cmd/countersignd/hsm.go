package main

import (
	"context"
	"errors"
	"fmt"

	"countersign/appliance/adminapi"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/hsm/failover"
	"countersign/hsm/pool"
)

// hsmStatus returns the summary for countersignctl status.
func (d *daemon) hsmStatus() adminapi.HSM {
	sum := adminapi.HSM{Ready: d.token.Ready()}
	for _, t := range d.pools {
		s := t.State()
		sum.Workers += s.Alive
		sum.Wanted += s.Want
	}
	return sum
}

// checkTokens returns an error that names each token that serves nothing.
func (p *parts) checkTokens(context.Context) error {
	var reasons []error
	for _, t := range p.hsmTokens() {
		if !t.Serves() {
			reasons = append(reasons, fmt.Errorf("%s token is %s: %s", t.Name, t.State, t.Reason))
		}
	}
	return errors.Join(reasons...)
}

// hsmTokens returns the tokens and workers for countersignctl hsm status.
func (p *parts) hsmTokens() []adminapi.Token {
	all := make([]adminapi.Token, 0, len(p.pools))
	for _, t := range p.pools {
		all = append(all, p.tokenWords(t))
	}
	return all
}

func (p *parts) tokenWords(t tokenPool) adminapi.Token {
	state := t.State()
	words := adminapi.Token{
		Name: t.Name, Label: t.TokenLabel, Serial: t.TokenSerial, Module: t.Module,
		State: tokenState(state), Wanted: state.Want, Sessions: p.cfg.Sessions, Workers: []adminapi.Worker{},
		Drained: p.token.Drained(t.Name), InFlight: t.InFlight(),
	}
	if state.Err != nil {
		words.Reason = state.Err.Error()
		words.NeedsPIN = errors.Is(state.Err, hsm.ErrPIN) || errors.Is(state.Err, hsm.ErrLocked)
	}
	if err := p.token.Refused(t.Name); err != nil {
		words.State, words.Reason = adminapi.TokenRefused, err.Error()
	}
	for _, w := range t.Processes() {
		words.Workers = append(words.Workers, workerWords(w))
	}
	return words
}

func tokenState(s pool.State) string {
	switch {
	case errors.Is(s.Err, hsm.ErrPIN) && s.Alive == 0:
		return "pin-refused"
	case errors.Is(s.Err, hsm.ErrPIN):
		return adminapi.TokenDegraded
	case errors.Is(s.Err, hsm.ErrLocked):
		return "locked"
	case !s.Ready:
		return "unavailable"
	case s.Alive < s.Want:
		return adminapi.TokenDegraded
	default:
		return adminapi.TokenReady
	}
}

func workerWords(w pool.Process) adminapi.Worker {
	out := adminapi.Worker{
		PID: w.PID, State: "silent", Started: w.Started, InFlight: w.Calls, Most: w.Most, Calls: w.Done, Wrong: w.Wrong,
		CallUS: float64(w.Took.Nanoseconds()) / 1e3,
	}
	if w.Well {
		out.State = "well"
	}
	if !w.Proven.IsZero() {
		out.Proven = &w.Proven
	}
	return out
}

// unlock gives the PIN to a token and records the outcome.
func (d *daemon) unlock(ctx context.Context, name string, pin []byte) error {
	t, err := d.waiting(name)
	if err != nil {
		return err
	}
	// A caller that disconnects has asked all the same: the outcome must be known and
	// recorded.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	failed := t.Unlock(ctx, hsm.PIN(pin))
	if errors.Is(failed, pool.ErrUnlocked) {
		return conflict{failed}
	}
	event := "unlocked"
	if failed != nil {
		event = "unlock failed"
	}
	if err := errors.Join(failed, d.record(ctx, t.Name, event)); err != nil {
		return err
	}
	return d.untilLoaded(ctx)
}

// waiting returns the token of that name, or for "" the first that waits for a PIN.
func (d *daemon) waiting(name string) (tokenPool, error) {
	for _, t := range d.pools {
		err := t.State().Err
		if name == t.Name || name == "" && (errors.Is(err, hsm.ErrLocked) || errors.Is(err, hsm.ErrPIN)) {
			return t, nil
		}
	}
	if name == "" {
		return tokenPool{}, conflict{pool.ErrUnlocked}
	}
	return tokenPool{}, fmt.Errorf("token %q: %w", name, store.ErrNotFound)
}

// drain stops or resumes calls to a token.
func (d *daemon) drain(ctx context.Context, name string, drain bool) error {
	switch err := d.token.Drain(name, drain); {
	case errors.Is(err, failover.ErrNoMember):
		return fmt.Errorf("%w: %w", err, store.ErrNotFound)
	case errors.Is(err, failover.ErrLast):
		return conflict{err}
	case err != nil:
		return err
	}
	if err := d.record(ctx, name, map[bool]string{true: "drained", false: "resumed"}[drain]); err != nil || !drain {
		return err
	}
	return d.token.Idle(ctx, name)
}

// conflict is [store.ErrConflict] with a text of its own.
type conflict struct{ error }

func (c conflict) Unwrap() []error { return []error{c.error, store.ErrConflict} }

func (d *daemon) record(ctx context.Context, token, event string) error {
	return d.store.Append(ctx, audit.Act(ctx, audit.KindHSM, "token/"+token, map[string]any{"event": event}))
}

// untilLoaded waits until the appliance is loaded.
func (d *daemon) untilLoaded(ctx context.Context) error {
	select {
	case <-d.loaded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
