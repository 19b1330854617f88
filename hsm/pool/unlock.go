package pool

import (
	"context"
	"errors"
	"fmt"

	"countersign/hsm"
)

// Unlock gives a PIN to a pool that has none or whose PIN was refused, lifts the
// guard, and tries the PIN once. One that is refused is [hsm.ErrPIN] and puts the
// guard up again; so is one that waited while another was refused, and is not
// tried. A token that cannot be reached is [hsm.ErrUnavailable]; a patient pool
// keeps the PIN for it all the same. A pool that runs is [ErrUnlocked]. The PIN is
// taken over and erased.
func (p *Pool) Unlock(ctx context.Context, pin hsm.PIN) error {
	defer pin.Zero()
	refused := p.refusals.Load()
	p.unlocking.Lock()
	defer p.unlocking.Unlock()
	switch stopped := p.stopReason(); {
	case stopped == nil:
		return ErrUnlocked
	case errors.Is(stopped, ErrClosed):
		return stopped
	case len(pin) == 0:
		return fmt.Errorf("no PIN: %w", hsm.ErrInput)
	case refused != p.refusals.Load():
		return fmt.Errorf("another PIN was refused meanwhile, this one was not tried: %w", hsm.ErrPIN)
	}
	if err := p.cfg.Guard.Lift(); err != nil { // somebody has thought about it
		return err
	}
	return p.unlock(ctx, pin)
}

// unlock starts with a PIN, unless the guard is up. Callers hold unlocking.
func (p *Pool) unlock(ctx context.Context, pin hsm.PIN) error {
	if err := p.keep(pin); err != nil {
		return err
	}
	var first *link
	err := p.cfg.Guard.Try(func() (err error) {
		first, err = p.start(ctx, startTimeout, func() error { return nil })
		return err
	})
	if err != nil && !(p.cfg.Patient && errors.Is(err, hsm.ErrUnavailable)) {
		if errors.Is(err, ErrRefusedBefore) { // else the start has said so
			p.stopIfRefused(err)
		}
		return err
	}
	if err != nil {
		p.cfg.Logger.Error("token is not there, going on trying", "error", err)
		p.judge(err)
	}
	p.resume()
	p.begin(ctx, first)
	return err
}

// keep puts the PIN where starts find it, in place of one before.
func (p *Pool) keep(pin hsm.PIN) error {
	fresh, err := newVault(pin)
	if err != nil {
		return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.vault.close()
	p.vault = fresh
	return nil
}

// begin gives a worker, or nil, to its supervisor, the first time with all the
// others. Callers hold unlocking, as does Close before it waits for supervisors.
func (p *Pool) begin(ctx context.Context, first *link) {
	if p.isClosed() {
		discard(first)
		return
	}
	if p.begun {
		if first != nil {
			p.spare <- first
			p.settle(ctx)
		}
		return
	}
	p.begun = true
	links := make([]*link, p.cfg.Workers) // nil is for the supervisor to start
	links[0] = first
	for i := 1; i < len(links) && first != nil; i++ {
		l, err := p.start(ctx, startTimeout, p.stopReason)
		if err != nil {
			p.cfg.Logger.Error("cannot start worker", "error", err)
			break
		}
		links[i] = l
	}
	for slot, l := range links {
		if l != nil && !p.add(l) {
			l = nil
		}
		p.running.Go(func() { p.supervise(slot, l) })
	}
}

// settle waits until the pool is ready, so that who unlocked it finds it so.
func (p *Pool) settle(ctx context.Context) {
	for {
		changed := p.nextChange()
		if p.Ready() {
			return
		}
		select {
		case <-changed:
		case <-p.closed:
			return
		case <-ctx.Done():
			return
		}
	}
}

func discard(l *link) {
	if l != nil {
		l.fail(ErrClosed)
		l.end()
	}
}
