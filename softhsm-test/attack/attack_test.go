// Package attack plays relay, device and phone at byte level against a running appliance with
// a real PKCS#11 token. It checks each attempt by the code of the answer and by the state that
// it leaves: the store to the bit, the audit records by kind, and the hook log.
package attack

import (
	"context"
	"errors"
	"flag"
	"testing"

	"countersign/softhsm-test/harness"
)

// sections in their order. timing comes last because it leaves many records.
var sections = []struct {
	name string
	run  func(context.Context, *Arena)
}{
	{"flips", flips},
	{"replays", replays},
	{"handles", handles},
	{"attempts", attempts},
	{"counters", counters},
	{"downgrades", downgrades},
	{"approvers", approvers},
	{"decisions", decisions},
	{"trust", trustChain},
	{"store", storeRows},
	{"enrolment", enrolment},
	{"identity", identity},
	{"relay", ownRelay},
	{"timing", timing},
}

// Values of BREAK.
const (
	breakReplay = "replay" // a decision is deleted from the store between two replays
	breakGuard  = "guard"  // a password guard is set back
	breakFlip   = "flip"   // one altered M3 is sent unaltered
)

var quiet = flag.Int("quiet", 250, "tries of each class in the quiet phase of timing; 2000 take ten minutes")

func TestMain(m *testing.M) {
	s := harness.Suite{Name: "attack-test", Breaks: []string{breakReplay, breakGuard, breakFlip}, Check: checkQuiet}
	for _, section := range sections {
		s.Sections = append(s.Sections, section.name)
	}
	harness.Main(m, s)
}

func checkQuiet() error {
	if *quiet < 20 {
		return errors.New("-quiet: fewer than 20 tries show nothing")
	}
	return nil
}

// TestAttack leaves out flips and timing under `go test -short`.
func TestAttack(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(r *harness.Report) {
		a := openArena(r)
		for _, s := range sections {
			if harness.Brief() && (s.name == "flips" || s.name == "timing") {
				continue
			}
			r.Section(s.name, func() { s.run(t.Context(), a) })
		}
	})
}

func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Short: true, Break: breakReplay, Args: []string{"-only", "replays"}, Exit: 1},
		harness.Broken{Break: breakGuard, Args: []string{"-only", "attempts"}, Exit: 1},
		harness.Broken{Break: "nonsense", Exit: 2},
		harness.Broken{Args: []string{"-only", "nothing"}, Exit: 2},
	)
}
