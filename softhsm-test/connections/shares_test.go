package connections

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
)

// greedy is how many requests of one device are in progress at once, of which it has a share.
const greedy = 100

// share: a device that asks for all that the appliance can process is answered busy, and another one is served.
func share(r *harness.Report, bin harness.Bin) {
	ctx := r.Context()
	s := open(ctx, r, bin)
	defer s.close()
	s.authorize(ctx, briefly)
	other := harness.Must(device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, harness.Must(s.Invite(ctx, "device", "greedy"))))
	defer other.Close()
	var busy, served atomic.Int64
	end := s.applyAll(ctx, other, func(err error) {
		var refusal *device.Refusal
		switch {
		case err == nil:
			served.Add(1)
		case errors.As(err, &refusal) && refusal.Status == http.StatusTooManyRequests:
			busy.Add(1)
		}
	})
	harness.Do(harness.Until(ctx, "a full share", func() (bool, error) { return busy.Load() > greedy && served.Load() > 0, nil }))
	refused := 0
	for range briefly {
		if _, err := s.once(ctx); err != nil {
			refused++
		}
	}
	end()
	s.Check(refused == 0, "%d authorizations of another device, %d of them refused", briefly, refused)
	bound := s.metric(ctx, `countersign_api_busy_total{bound="device"}`)
	s.Check(bound > 0, "the greedy device: %d requests served, %d answered busy, %.0f of them for its share", served.Load(), busy.Load(), bound)
}

// applyAll applies without pause, greedy times at once.
func (s *stage) applyAll(ctx context.Context, d *device.Device, seen func(error)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	stranger := phone.Stranger(s.phone.Trust)
	for range greedy {
		p1 := stranger.Next(door)
		session := harness.Must(stranger.Apply(p1.Marshal()))
		all.Go(func() {
			for ctx.Err() == nil {
				_, err := d.Apply(ctx, deviceapi.ApplyRequest{
					M1: session.M1, Order: deviceapi.Order{Services: []protocol.Service{door}}, Link: deviceapi.LinkWire, Nonce: device.NewNonce(),
				})
				seen(err)
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// smallLimit is a limit of open files that the appliance's limits do not fit.
const smallLimit = 400

// files: with few open files, connections do not take those of the admin socket, the store and the workers.
func files(r *harness.Report, bin harness.Bin) {
	ctx := r.Context()
	s := open(ctx, r, limited(r, bin, smallLimit))
	defer s.close()
	_, ready, err := s.get(ctx, "/readyz")
	r.Check(err == nil && strings.Contains(ready, fmt.Sprintf("%d open files do not suffice", smallLimit)), "/readyz warns: %s", ready)
	s.strangers.crowd(ctx, fewer, silent)
	s.reached(ctx)
	s.authorize(ctx, briefly)
	s.device.Close()
	_, err = s.once(ctx)
	s.Check(err == nil, "a device that connects now is served%s", because(err))
	held := s.metric(ctx, `countersign_api_connections{kind="stranger"}`)
	s.Check(held > 0 && held < smallLimit, "%.0f connections without a certificate", held)
	s.Check(!strings.Contains(s.Log(), "too many open files"), "nothing lacked a descriptor")
}

// limited returns the programs, with a countersignd that may open so many files.
func limited(r *harness.Report, bin harness.Bin, most int) harness.Bin {
	dir := harness.TempDir(r.T())
	for _, p := range harness.Programs {
		if p != "countersignd" {
			harness.Do(os.Symlink(bin.Path(p), filepath.Join(dir, p)))
		}
	}
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", most, bin.Path("countersignd"))
	harness.Do(os.WriteFile(filepath.Join(dir, "countersignd"), []byte(script), 0o700)) //nolint:gosec // it is run
	return harness.Bin(dir)
}
