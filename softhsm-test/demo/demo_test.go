// Package demo shows the main job with the real programs, a real PKCS#11 token and an attacker
// on the wire. It checks the traces of every scene: exit codes, counts of the store, audit
// records and the relay's hook log.
package demo

import (
	"flag"
	"fmt"
	"testing"

	"countersign/softhsm-test/harness"
)

var until = flag.Int("until", len(scenes), "play the first scenes only, this many")

func TestMain(m *testing.M) {
	harness.Main(m, harness.Suite{
		Name: "demo", Breaks: []string{"replay", "bit", "order", "suspend", "guard", "evidence", "limit"},
		Line: "%[2]d scenes, %[1]d as expected",
	})
}

// TestDemo plays all scenes on one appliance. BREAK=NAME makes one scene fail.
func TestDemo(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(r *harness.Report) {
		s := open(r)
		for i, sc := range scenes[:min(*until, len(scenes))] {
			s.Section(fmt.Sprintf("%d %s", i+1, sc.title), func() { s.play(t.Context(), i+1, sc) })
		}
		s.close()
	})
}

func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Short: true, Break: "replay", Args: []string{"-until", "6"}, Exit: 1, Line: "demo: 6 scenes, 5 as expected"},
		harness.Broken{Break: "guard", Args: []string{"-until", "12"}, Exit: 1, Line: "demo: 12 scenes, 11 as expected"},
		harness.Broken{Break: "nonsense", Exit: 2},
	)
}
