package main

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign/appliance/httpapi"
)

// runLocked serves nothing but health, the state of the HSM and its unlocking,
// until somebody has given the PIN, and then all of it. The listeners are the same
// throughout.
func (d *daemon) runLocked(ctx context.Context) error {
	d.log.Warn("locked: the HSM waits for its PIN", "hint", "countersignctl hsm unlock")
	hsmOnly := d.hsmAPI()
	admin := httpapi.NewSwitch(hsmOnly.Handler())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return httpapi.Serve(ctx, d.log, d.adminServer(admin), d.opsServer()) })
	group.Go(func() error {
		if !d.untilUnlocked(ctx) {
			return nil
		}
		if err := d.load(ctx); err != nil {
			return err
		}
		admin.Use(d.adminHandler())
		close(d.loaded)
		return d.runServers(ctx, d.apiServer())
	})
	return group.Wait()
}

// unlockedPoll is how often a locked daemon looks whether it is unlocked.
const unlockedPoll = 20 * time.Millisecond

// untilUnlocked waits; false when ctx ended before.
func (d *daemon) untilUnlocked(ctx context.Context) bool {
	tick := time.NewTicker(unlockedPoll)
	defer tick.Stop()
	for !d.token.Ready() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
