// Package rotate rotates every key of an appliance with a real PKCS#11 token while phones
// authorize: none may fail, no good one may be refused, and no bad one approved. Phones and a
// device that slept through epochs and roots wake and continue. Then it kills the daemon
// (kill -9) within each step of each key, repeats the step, and checks that it takes effect
// once.
package rotate

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
)

var sections = []struct {
	name string
	run  func(*stage, context.Context)
}{
	{"rotation under load", (*stage).rotateAll},
	{"sleepers", (*stage).wakeAll},
	{"kill -9 within each step", (*stage).killAll},
}

// Values of BREAK. cert spoils the KeyCert of a new kem epoch; the others are edits.
const (
	breakMAC     = "mac"     // a version of mac may be retired before the records have new MACs
	breakWrap    = "wrap"    // a version of wrap is given up before the verifiers are wrapped anew
	breakRetired = "retired" // a retired kem epoch is accepted
	breakCert    = "cert"
)

var edits = map[string][]harness.Edit{
	breakMAC: {
		{File: "appliance/keylife/keylife.go", Old: "if err == nil && under > 0 {", New: "if false {"},
		{File: "appliance/keylife/renewal.go", Old: "if !k.keys.Ring().OneOf(keyring.MAC) {", New: "if false {"},
	},
	breakWrap: {
		{File: "appliance/keyuse/use.go", Old: "k.Ring().Accepted(keyring.Wrap, time.Now()) {", New: "k.Ring().Accepted(keyring.Wrap, time.Now())[:1] {"},
		{File: "appliance/keylife/rewrap.go", Old: "range ring.Accepted(keyring.Wrap, now)[1:] {", New: "range ring.Accepted(keyring.Wrap, now)[:0] {"},
	},
	breakRetired: {
		{File: "appliance/keyuse/use.go", Old: "range ring.Accepted(keyring.KEM, now) {", New: "range ring.Versions(keyring.KEM) {"},
	},
}

var keys = flag.String("keys", "", "keys to rotate, separated by commas; all if empty")

func TestMain(m *testing.M) {
	s := harness.Suite{Name: "rotate-test", Breaks: []string{breakMAC, breakWrap, breakRetired, breakCert}, Check: checkKeys}
	for _, section := range sections {
		s.Sections = append(s.Sections, section.name)
	}
	harness.Main(m, s)
}

// checkKeys returns an error if -keys names a key that is not in turns.
func checkKeys() error {
	for name := range strings.SplitSeq(*keys, ",") {
		if name != "" && !slices.ContainsFunc(turns, func(t turn) bool { return t.name == name }) {
			return fmt.Errorf("-keys: no key %q", name)
		}
	}
	return nil
}

// chosen are the keys that -keys names. With -short and without -keys it is decision alone.
func chosen() []turn {
	switch {
	case *keys == "" && testing.Short():
		return turns[:1]
	case *keys == "":
		return turns
	}
	var some []turn
	for name := range strings.SplitSeq(*keys, ",") {
		i := slices.IndexFunc(turns, func(t turn) bool { return t.name == name })
		some = append(some, turns[i])
	}
	return some
}

// TestRotate skips the sections after one that failed. -short rotates each key once, with one
// kill in each step.
func TestRotate(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(r *harness.Report) {
		bin := harness.Must(harness.Built())
		if e := edits[harness.Break()]; e != nil {
			bin = harness.Must(bin.Broken(t.Context(), e, ""))
			t.Cleanup(func() { _ = os.RemoveAll(string(bin)) }) // at worst it stays in the temporary directory
		}
		s := open(r, bin)
		for _, section := range sections {
			if !s.Section(section.name, func() { section.run(s, r.Context()) }) {
				return
			}
		}
	})
}

func TestEdits(t *testing.T) { harness.TestEdits(t, edits) }

func TestBreaks(t *testing.T) {
	const load = "rotation under load"
	harness.TestBreaks(
		t,
		harness.Broken{Args: []string{"-keys", "wrap", "-only", load}, Line: " passed, 0 failed"},
		harness.Broken{Break: breakMAC, Args: []string{"-keys", "mac", "-only", load}, Exit: 1},
		harness.Broken{Break: breakWrap, Args: []string{"-keys", "wrap", "-only", load}, Exit: 1},
		harness.Broken{Short: true, Break: breakRetired, Args: []string{"-keys", "kem", "-only", load}, Exit: 1},
		harness.Broken{Break: breakCert, Args: []string{"-keys", "kem", "-only", load}, Exit: 1},
		harness.Broken{Break: "nonsense", Exit: 2},
		harness.Broken{Args: []string{"-keys", "nothing"}, Exit: 2},
	)
}
