package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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

// checkTokens returns an error that names each token that does not serve.
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

// hsmKeys returns hsmTokens with the keys in use that each token has, once the keys are loaded.
func (d *daemon) hsmKeys(ctx context.Context) []adminapi.Token {
	all := d.hsmTokens()
	if !d.isLoaded() {
		return all
	}
	for i, t := range d.pools {
		if has, lacks, err := d.keysOf(ctx, t); err == nil {
			all[i].Keys, all[i].Lacks = has, lacks
		}
	}
	return all
}

// keysOf returns how many of the keys in use a token has, and the labels of those that it lacks.
func (d *daemon) keysOf(ctx context.Context, t tokenPool) (has int, lacks []string, err error) {
	keys, err := t.Keys(ctx)
	lacks = []string{}
	for _, k := range d.keys.Ring().Keys() {
		switch {
		case !k.OnToken || !k.Accepted(time.Now()):
		case slices.ContainsFunc(keys, func(on hsm.Key) bool { return on.ID == k.ID }):
			has++
		default:
			lacks = append(lacks, k.Label())
		}
	}
	return has, lacks, err
}

// canTakeOver returns an error if every other token that answers lacks a key in use.
func (d *daemon) canTakeOver(ctx context.Context, from string) error {
	var reasons []error
	for _, t := range d.pools {
		if t.Name == from || d.token.Drained(t.Name) || !t.Ready() {
			continue // Drain refuses if no other token serves
		}
		_, lacks, err := d.keysOf(ctx, t)
		switch {
		case err != nil: // Drain refuses to leave the service to a token that does not answer
		case len(lacks) > 0:
			reasons = append(reasons, fmt.Errorf("%s token lacks %s", t.Name, strings.Join(lacks, ", ")))
		default:
			return nil
		}
	}
	return errors.Join(reasons...) // none if there is no other token, which Drain refuses
}

func (p *parts) tokenWords(t tokenPool) adminapi.Token {
	state := t.State()
	words := adminapi.Token{
		Name: t.Name, Label: t.TokenLabel, Serial: t.TokenSerial, Module: t.Module,
		State: tokenState(state), Wanted: state.Want, Sessions: p.cfg.Sessions, Workers: []adminapi.Worker{},
		Drained: p.token.Drained(t.Name), InFlight: t.InFlight(), Ways: t.Ways(),
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
	if drain && d.isLoaded() {
		if err := d.canTakeOver(ctx, name); err != nil {
			return conflict{fmt.Errorf("%w: rotate these keys (a rotation makes the next version on every token), "+
				"or restore their copies onto it", err)}
		}
	}
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

func (d *daemon) isLoaded() bool {
	select {
	case <-d.loaded:
		return true
	default:
		return false
	}
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
