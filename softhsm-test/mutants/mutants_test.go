// Package mutants changes one decision of the product at a time and runs its tests, which have to
// notice. A mutant that no test notices is a failure, unless equivalent.txt lists it with the reason
// why it changes nothing that a caller could see.
//
// The known mutants are in a table. The others are drawn from a seed, among the functions that
// decide. The compiler reads the changed file through -overlay: no file of the tree changes.
package mutants

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"countersign/softhsm-test/harness"
)

// Sections of the suite.
const (
	sectionKnown = "known mutants"
	sectionDrawn = "drawn mutants"
)

// breakBlind runs no tests on a mutant.
const breakBlind = "blind"

// defaultSeed is the seed of a run that names none, so that two runs on one source agree.
const defaultSeed = 1

var (
	seedFlag = flag.String("seed", os.Getenv("MUTANTS_SEED"), "seed of the drawn mutants (MUTANTS_SEED)")
	drawn    = flag.Int("draw", 40, "number of mutants to draw")
	pick     = flag.String("pick", "", "numbers of the known mutants to run, separated by commas; all if empty")
)

func TestMain(m *testing.M) {
	harness.Main(m, harness.Suite{
		Name: "mutants", Sections: []string{sectionKnown, sectionDrawn}, Breaks: []string{breakBlind}, Check: checkFlags,
	})
}

// chosen are the known mutants to run, and seed the seed of the others.
var (
	chosen []mutant
	seed   uint64 = defaultSeed
)

func checkFlags() (err error) {
	if *seedFlag != "" {
		if seed, err = strconv.ParseUint(*seedFlag, 10, 64); err != nil {
			return fmt.Errorf("-seed: %w", err)
		}
	}
	chosen = known
	if *pick != "" {
		chosen = nil
		for number := range strings.SplitSeq(*pick, ",") {
			i, err := strconv.Atoi(number)
			if err != nil || i < 1 || i > len(known) {
				return fmt.Errorf("-pick: no known mutant %q\nhint: 1 to %d", number, len(known))
			}
			chosen = append(chosen, known[i-1])
		}
	}
	return nil
}

// TestMutants runs the mutants. In `go test -short` it only looks for the places that they change.
func TestMutants(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(r *harness.Report) {
		s := &stage{Report: r, tree: harness.Must(readTree()), dir: harness.TempDir(t)}
		s.listed = harness.Must(readEquivalents())
		s.look()
		if harness.Brief() {
			return
		}
		s.tests = harness.Must(newTests(r.Context(), s.tree.root, s.dir))
		s.Section(sectionKnown, func() { s.runKnown(r.Context()) })
		s.Section(sectionDrawn, func() { s.runDrawn(r.Context()) })
	})
}

func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Short: true, Break: breakBlind, Args: []string{"-only", sectionKnown, "-pick", "2"}, Exit: 1, Line: " 1 failed"},
		harness.Broken{Args: []string{"-only", sectionKnown, "-pick", "3"}, Line: " passed, 0 failed"},
		harness.Broken{Break: "nonsense", Exit: 2},
		harness.Broken{Args: []string{"-pick", "99"}, Exit: 2},
		harness.Broken{Args: []string{"-seed", "x"}, Exit: 2},
	)
}

// stage is the state of a run.
type stage struct {
	*harness.Report
	tree   *tree
	listed []equivalent
	tests  *tests
	dir    string
}

// look checks that each known mutant, each pattern of deciding and each entry of equivalent.txt fits the source.
func (s *stage) look() {
	for _, m := range known {
		if _, err := s.tree.change(m.edits); err != nil {
			s.Check(false, "known mutant %d, %s: %v", m.number, m.meaning, err)
		}
	}
	_, missing := s.tree.deciding()
	for _, pattern := range missing {
		s.Check(false, "no function is called %s: mend the list in deciding_test.go", pattern)
	}
	for _, e := range s.listed {
		if !s.tree.has(e) {
			s.Check(false, "equivalent.txt lists a mutant that cannot be made any more: remove it, or write what it is now\n%s", e)
		}
	}
}

// runKnown runs the mutants of the table.
func (s *stage) runKnown(ctx context.Context) {
	parallel(len(chosen), func(i int) {
		m := chosen[i]
		changed, err := s.tree.change(m.edits)
		if err != nil {
			return // look has reported it
		}
		s.judge(fmt.Sprintf("%2d %s", m.number, m.meaning), changed, s.tests.run(ctx, changed))
	})
}

// runDrawn draws mutants from the seed and runs them. A mutant that does not compile is replaced by the next of the seed.
func (s *stage) runDrawn(ctx context.Context) {
	s.Say("MUTANTS_SEED=%d", seed)
	functions, _ := s.tree.deciding()
	all := candidates(functions)
	order(all, seed)
	var mu sync.Mutex // guards next, number and skipped
	next, number, skipped := 0, 0, 0
	draw := func() (c candidate, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if next == len(all) {
			return c, false
		}
		next++
		return all[next-1], true
	}
	parallel(*drawn, func(int) {
		for {
			c, ok := draw()
			if !ok {
				return
			}
			result := s.tests.run(ctx, c.changed())
			mu.Lock()
			if result.unbuilt {
				skipped++
				mu.Unlock()
				continue
			}
			number++
			title := fmt.Sprintf("%2d %s", number, c.kind)
			mu.Unlock()
			s.judge(title, c.changed(), result)
			return
		}
	})
	s.Say("%d candidates in %d functions; %d did not compile and were replaced", len(all), len(functions), skipped)
}

// judge counts one mutant.
func (s *stage) judge(title string, c changed, r result) {
	e := equivalent{symbol: c.symbol, text: c.text}
	why, listed := reasonOf(s.listed, e)
	switch {
	case r.err != nil:
		s.Check(false, "%s: %v\n%s", title, r.err, e)
	case r.unbuilt:
		s.Check(false, "%s: it does not compile\n%s\n%s", title, e, r.output)
	case r.killedBy != "":
		s.Check(true, "")
		s.Say("killed   %s (%s)\n         by %s in %.1fs", title, c.symbol, r.killedBy, r.took.Seconds())
	case listed:
		s.Check(true, "")
		s.Say("equal    %s (%s): %s", title, c.symbol, why)
	default:
		s.Check(false, "SURVIVED %s, after %d packages of tests in %.1fs\n%s", title, r.packages, r.took.Seconds(), e)
	}
}

// parallel calls f for 0 to n-1, as many at once as there are processors.
func parallel(n int, f func(i int)) { harness.Each(n, runtime.GOMAXPROCS(0), f) }
