// Package connections holds connections to a running appliance open, by the thousand and without a certificate, while an
// honest device authorizes. It measures the appliance's memory, the honest device's answers, and whether
// administrators can reach it.
package connections

import (
	"context"
	"testing"
	"time"

	"countersign/softhsm-test/harness"
)

// Values of BREAK.
const (
	breakLimit = "limit" // strangers have no limit
	breakJudge = "judge" // a certificate is judged in the handshake alone
)

var breaks = map[string][]harness.Edit{
	breakLimit: {{
		File: "cmd/countersignd/daemon.go",
		Old:  "Strangers: cfg.Strangers, PerAddress: cfg.StrangersPerAddress",
		New:  "Strangers: 1 << 20, PerAddress: 1 << 20",
	}},
	breakJudge: {{
		File: "appliance/api/judge.go",
		Old:  "v.ring == ring && !now.After(v.until)",
		New:  "true",
	}},
}

func TestMain(m *testing.M) {
	harness.Main(m, harness.Suite{Name: "connections-test", Sections: []string{"authority", "share", "files", "idle", "shapes"}, Breaks: []string{breakLimit, breakJudge}})
}

// TestConnections runs every section with an appliance of its own.
func TestConnections(t *testing.T) {
	harness.Run(t, func(r *harness.Report) {
		r.Every = true
		bin := harness.Must(harness.Built())
		if edits := breaks[harness.Break()]; edits != nil {
			bin = harness.Must(bin.Broken(t.Context(), edits, ""))
		}
		r.Section("authority", func() { authority(r, bin) })
		r.Section("share", func() { share(r, bin) })
		r.Section("files", func() { files(r, bin) })
		r.Section("idle", func() { idle(r, bin) })
		if !harness.Brief() {
			r.Section("shapes", func() { shapes(r, bin) })
		}
	})
}

func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Short: true, Break: breakLimit, Args: []string{"-only", "idle"}, Exit: 1, Line: " failed"},
		harness.Broken{Break: breakJudge, Args: []string{"-only", "authority"}, Exit: 1, Line: " failed"},
		harness.Broken{Break: "nonsense", Exit: 2},
	)
}

func TestEdits(t *testing.T) { harness.TestEdits(t, breaks) }

// The flood.
const (
	flood      = 4000
	fewer      = 1200 // the same in a short run
	addresses  = 40   // beside the honest device's own
	mostMemory = 40 << 20
	mostRatio  = 1.2
	reachable  = time.Second // for an answer to an administrator
)

// Windows of measurement.
const (
	pairs     = 8
	perWindow = 400 // authorizations
	briefly   = 50  // the same in a short run, which compares no times
)

// idle: connections that have made the handshake and do nothing cost little memory and no time.
func idle(r *harness.Report, bin harness.Bin) {
	ctx := r.Context()
	s := open(ctx, r, bin)
	defer s.close()
	windows, each := pairs, perWindow
	if testing.Short() {
		windows, each = 1, briefly
	}
	s.authorize(ctx, each) // first connections, prepared statements, a heap of its usual size
	before := s.memory()
	var without, with []time.Duration
	for i := range windows {
		calm := func() { without = append(without, s.authorize(ctx, each)...) }
		rush := func() { with = append(with, s.besieged(ctx, each)...) }
		if i%2 == 0 { // so that a machine that gets slower or faster does not matter
			calm()
			rush()
		} else {
			rush()
			calm()
		}
	}
	most := s.watched.most() - before
	r.Check(most < mostMemory, "memory (RSS) of countersignd: %.1f MB before, at most %+.1f MB more (less than %d)", mb(before), mb(most), mostMemory>>20)
	s.compare(without, with)
}

// besieged authorizes while strangers hold connections.
func (s *stage) besieged(ctx context.Context, n int) []time.Duration {
	begun := time.Now()
	crowd := flood
	if testing.Short() {
		crowd = fewer
	}
	cut := s.strangers.crowd(ctx, crowd, settled)
	defer s.calm(ctx)
	s.Say("%d connections from %d addresses in %v, %d cut in the handshake",
		crowd, 1+addresses, time.Since(begun).Round(100*time.Millisecond), cut)
	s.holdsFew(ctx)
	s.reached(ctx)
	return s.authorize(ctx, n)
}

// holdsFew checks how many connections without a certificate the appliance holds: config.toml, api.strangers.
func (s *stage) holdsFew(ctx context.Context) {
	const most = 512
	held := s.metric(ctx, `countersign_api_connections{kind="stranger"}`)
	s.Check(held <= most, "the appliance holds %.0f of them (at most %d)", held, most)
}

func mb(n int) float64 { return float64(n) / (1 << 20) }
