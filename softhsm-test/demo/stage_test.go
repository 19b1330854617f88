package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

// stage is the appliance with its relay, the attacker between it and the phones,
// and the phones.
type stage struct {
	*harness.Report
	*harness.Appliance
	dir   string
	wire  *link.Proxy
	wrong []string // of the scene that plays

	machines map[string]string // names of further devices, by link
	franks   string            // serial of frank's payment, which waits
}

func open(r *harness.Report) *stage {
	s := &stage{Report: r, dir: harness.TempDir(r.T()), machines: map[string]string{}}
	s.Appliance = harness.Must(harness.Start(r.Context(), harness.Config{Bin: harness.Must(harness.Built()), Dir: filepath.Join(s.dir, "dev")}))
	s.wire = harness.Must(link.NewProxy(s.Link))
	s.Say("Countersign: a phone without a network authorizes with its signature, and an appliance")
	s.Say("whose keys never leave a PKCS#11 token decides. Running: countersignd, 2 hsm-worker on a")
	s.Say("SoftHSM token, relayd as the door and the till; between phone and relay, an attacker.")
	return s
}

// close stops everything gently.
func (s *stage) close() {
	harness.Do(s.wire.Close())
	took := harness.Must(s.Stop())
	s.Say("")
	s.Say("stopped by SIGTERM in %v", took.Round(1e6))
}

// scene is one event, and the counts that it must add.
type scene struct {
	title string
	story []string
	play  func(*stage, context.Context)
	want  harness.Tally // more than before
}

// play plays a scene: one check.
func (s *stage) play(ctx context.Context, number int, sc scene) {
	s.Say("")
	s.Say("%d. %s", number, sc.title)
	for _, line := range sc.story {
		s.Say("   %s", line)
	}
	s.wrong = nil
	s.wire.Reset()
	if err := harness.Try(func() { s.counted(ctx, sc) }); err != nil {
		s.blame("%v", err)
	}
	if s.Check(len(s.wrong) == 0, "not as expected: %s", strings.Join(s.wrong, "; ")); len(s.wrong) == 0 {
		s.Say("   as expected: %s", words(sc.want))
	}
}

// counted plays a scene between two counts.
func (s *stage) counted(ctx context.Context, sc scene) {
	before := harness.Must(s.Tally(ctx))
	sc.play(s, ctx)
	after := harness.Must(s.Tally(ctx))
	if want := before.Plus(sc.want); after != want {
		s.blame("counted %s; wanted %s", words(minus(after, before)), words(sc.want))
	}
}

func minus(a, b harness.Tally) harness.Tally {
	return harness.Tally{
		Clients: a.Clients - b.Clients, Devices: a.Devices - b.Devices, Decisions: a.Decisions - b.Decisions,
		Audited: a.Audited - b.Audited, Refused: a.Refused - b.Refused, Acts: a.Acts - b.Acts,
	}
}

func words(t harness.Tally) string {
	var parts []string
	for _, p := range []struct {
		n    uint64
		what string
	}{{t.Clients, "phones enrolled"}, {t.Devices, "devices enrolled"}, {t.Decisions, "decisions stored"}, {t.Audited, "decisions audited"}, {t.Refused, "attempts audited"}, {t.Acts, "acts in the hook log"}} {
		if p.n != 0 {
			parts = append(parts, fmt.Sprintf("%s: %d", p.what, int64(p.n)))
		}
	}
	if parts == nil {
		return "nothing stored, nothing done"
	}
	return strings.Join(parts, ", ")
}

// blame notes a difference from the expected course.
func (s *stage) blame(format string, args ...any) {
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
}

// demand notes it unless ok.
func (s *stage) demand(ok bool, format string, args ...any) {
	if !ok {
		s.blame(format, args...)
	}
}
