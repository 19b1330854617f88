package main

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign/appliance/api"
	"countersign/hsm"
)

// runLocked serves only health, the state of the HSM and its unlocking until an
// administrator gives the PIN, and everything after that. The listeners stay the same.
func (d *daemon) runLocked(ctx context.Context) error {
	d.log.Warn("locked: the HSM waits for its PIN", "hint", "countersignctl hsm unlock")
	admin := api.NewSwitch(d.adminAPI().LockedHandler())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return api.Serve(ctx, d.log, d.adminServer(admin), d.opsServer()) })
	group.Go(func() error {
		if err := d.loadUnlocked(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		admin.Use(d.adminAPI().Handler())
		close(d.loaded)
		return d.runServers(ctx, d.apiServer())
	})
	return group.Wait()
}

// loadUnlocked waits for the PIN and loads keys and policy. If the token disappears
// meanwhile, it waits for it, so that the administrator need not give the PIN again.
func (d *daemon) loadUnlocked(ctx context.Context) error {
	for d.untilUnlocked(ctx) {
		err := d.load(ctx)
		if !errors.Is(err, hsm.ErrUnavailable) {
			return err
		}
		d.log.Error("loading keys and policy, trying again", "error", err)
	}
	return nil
}

// unlockedPoll is the interval at which a locked daemon checks whether it is unlocked.
const unlockedPoll = 20 * time.Millisecond

// untilUnlocked waits until the token is unlocked, and returns false if ctx ends before.
func (d *daemon) untilUnlocked(ctx context.Context) bool {
	tick := time.NewTicker(unlockedPoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
		if d.token.Ready() {
			return true
		}
	}
}
