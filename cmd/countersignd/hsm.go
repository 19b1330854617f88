package main

import (
	"context"
	"errors"
	"fmt"

	"countersign/appliance/admin"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/hsm/wire"
	"countersign/hsm/worker"
)

// hsmStatus is the short of it, for countersignctl status.
func (d *daemon) hsmStatus() admin.HSM {
	s := d.token.State()
	return admin.HSM{Ready: s.Ready, Workers: s.Alive, Wanted: s.Want}
}

// hsmTokens is the whole of it, for countersignctl hsm status.
func (d *daemon) hsmTokens() []admin.Token {
	t := admin.Token{
		Name: d.cfg.TokenLabel, Label: d.cfg.TokenLabel, Serial: d.cfg.TokenSerial, Module: d.cfg.Module,
		Sessions: d.cfg.Sessions, Workers: []admin.Worker{},
	}
	state := d.token.State()
	t.Wanted, t.State = state.Want, tokenState(state)
	if state.Err != nil {
		t.Reason = state.Err.Error()
	}
	for _, w := range d.token.Processes() {
		t.Workers = append(t.Workers, workerWords(w))
	}
	return []admin.Token{t}
}

func tokenState(s worker.State) string {
	switch {
	case errors.Is(s.Err, hsm.ErrPIN) && s.Alive == 0:
		return "pin-refused"
	case errors.Is(s.Err, hsm.ErrLocked):
		return "locked"
	case !s.Ready:
		return "unavailable"
	case s.Alive < s.Want:
		return "degraded"
	default:
		return "ready"
	}
}

func workerWords(w worker.Process) admin.Worker {
	out := admin.Worker{
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

// unlock gives the PIN to the token, and writes down that somebody did.
func (d *daemon) unlock(ctx context.Context, token string, pin []byte) error {
	if token != "" && token != d.cfg.TokenLabel {
		return fmt.Errorf("token %q: %w", token, store.ErrNotFound)
	}
	failed := d.token.Unlock(ctx, wire.PIN(pin))
	if errors.Is(failed, worker.ErrUnlocked) {
		return fmt.Errorf("%w: %w", failed, store.ErrConflict)
	}
	event := "unlocked"
	if failed != nil {
		event = "unlock failed"
	}
	rec := store.NewRecord(store.KindHSM, "token/"+d.cfg.TokenLabel, map[string]any{"event": event})
	if err := errors.Join(failed, d.store.Append(ctx, rec)); err != nil {
		return err
	}
	return d.untilLoaded(ctx)
}

// untilLoaded lets who unlocked the HSM go on when the appliance is there.
func (d *daemon) untilLoaded(ctx context.Context) error {
	select {
	case <-d.loaded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
