package main

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign/appliance/api"
	"countersign/hsm"
)

// runLocked serves nothing but health, the state of the HSM and its unlocking,
// until somebody has given the PIN, and then all of it. The listeners are the same
// throughout.
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

// loadUnlocked waits for the PIN and loads. A token that goes away meanwhile is waited
// for: the PIN is not to be given twice for it.
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

// unlockedPoll is how often a locked daemon looks whether it is unlocked.
const unlockedPoll = 20 * time.Millisecond

// untilUnlocked waits; false when ctx ended before.
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
