package worker

import (
	"context"
	"errors"
	"fmt"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// Unlock gives a PIN to a pool that has none or whose PIN was refused, lifts the
// guard, and tries the PIN once. One that is refused is [hsm.ErrPIN] and puts the
// guard up again; a token that cannot be reached is [hsm.ErrUnavailable], with the
// guard down; a pool that runs is [ErrUnlocked]. The PIN is taken over
// and erased.
func (p *Pool) Unlock(ctx context.Context, pin wire.PIN) error {
	defer pin.Zero()
	p.starting.Lock()
	defer p.starting.Unlock()
	switch stopped := p.stopReason(); {
	case stopped == nil:
		return ErrUnlocked
	case errors.Is(stopped, ErrClosed):
		return stopped
	case len(pin) == 0:
		return fmt.Errorf("no PIN: %w", hsm.ErrInput)
	}
	if err := p.cfg.Guard.Lift(); err != nil { // somebody has thought about it
		return err
	}
	return p.unlock(ctx, pin)
}

// unlock starts with a PIN, unless the guard is up. Callers hold starting.
func (p *Pool) unlock(ctx context.Context, pin wire.PIN) error {
	vault, err := newVault(pin)
	if err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	p.vault.close()
	p.vault = vault
	first, err := p.launch(ctx)
	if p.cfg.Patient && errors.Is(err, hsm.ErrUnavailable) {
		p.cfg.Logger.Error("token is not there, going on trying", "error", err)
		p.judge(err)
		err = nil
	}
	if err != nil {
		return err
	}
	p.resume()
	p.begin(ctx, first)
	return nil
}

// begin gives a worker, or nil, to its supervisor, the first time with all the
// others. Callers hold starting.
func (p *Pool) begin(ctx context.Context, first *link) {
	if p.begun {
		if first != nil {
			p.spare <- first
		}
		return
	}
	p.begun = true
	links := make([]*link, p.cfg.Workers) // nil is for the supervisor to start
	links[0] = first
	for i := 1; i < len(links) && first != nil; i++ {
		l, err := p.launch(ctx)
		if err != nil {
			p.cfg.Logger.Error("cannot start worker", "error", err)
			break
		}
		links[i] = l
	}
	for _, l := range links {
		if l != nil && !p.add(l) {
			l = nil
		}
		p.running.Go(func() { p.supervise(l) })
	}
}
