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

// Phases of the measurement. In each, strangers besiege one of two appliances, in turn.
const (
	phases   = 6
	perPhase = 500 // authorizations at each
	briefly  = 50  // the same in a short run, which compares no times
)

// idle: connections that have made the handshake and do nothing cost little memory and no time. Devices authorize at
// two appliances by turns, one besieged and one not, so that each pair of times is a few milliseconds apart and other
// work of the machine strikes both alike. Work that strangers make the besieged appliance do would slow both down, so
// processor time is compared too.
func idle(r *harness.Report, bin harness.Bin) {
	ctx := r.Context()
	both := [2]*stage{open(ctx, r, bin), open(ctx, r, bin)}
	defer both[0].close()
	defer both[1].close()
	n, each, crowd := phases, perPhase, flood
	if testing.Short() {
		n, each, crowd = 2, briefly, fewer
	}
	byTurns(ctx, both, each) // first connections, prepared statements, a heap of its usual size
	before := [2]int{both[0].watched.most(), both[1].watched.most()}
	var without, with samples
	for i := range n {
		besieged, calm := both[i%2], both[1-i%2]
		besieged.besiege(ctx, crowd)
		took := byTurns(ctx, [2]*stage{besieged, calm}, each)
		with.add(took[0])
		without.add(took[1])
		besieged.calm(ctx)
	}
	for i, s := range both {
		most := s.watched.most() - before[i]
		r.Check(most < mostMemory, "memory (RSS) of countersignd: at most %.1f MB without strangers, with them %+.1f MB (less than %d)",
			mb(before[i]), mb(most), mostMemory>>20)
	}
	compare(r, without, with)
}

// besiege lets strangers hold connections.
func (s *stage) besiege(ctx context.Context, crowd int) {
	begun := time.Now()
	cut := s.strangers.crowd(ctx, crowd, settled)
	s.Say("%d connections from %d addresses in %v, %d cut in the handshake",
		crowd, 1+addresses, time.Since(begun).Round(100*time.Millisecond), cut)
	s.holdsFew(ctx)
	s.reached(ctx)
}

// byTurns runs n authorizations at each appliance.
func byTurns(ctx context.Context, at [2]*stage, n int) (took [2]samples) {
	cpu := [2]time.Duration{at[0].cpu(), at[1].cpu()}
	for i := range 2 * n {
		k := (i + i/2) % 2 // 0 1 1 0 0 1 1 0 …
		took[k].times = append(took[k].times, harness.Must(at[k].once(ctx)))
	}
	for k := range took {
		took[k].cpu = at[k].cpu() - cpu[k]
	}
	return took
}

// holdsFew checks how many connections without a certificate the appliance holds: config.toml, api.strangers.
func (s *stage) holdsFew(ctx context.Context) {
	const most = 512
	held := s.metric(ctx, `countersign_api_connections{kind="stranger"}`)
	s.Check(held <= most, "the appliance holds %.0f of them (at most %d)", held, most)
}

func mb(n int) float64 { return float64(n) / (1 << 20) }
