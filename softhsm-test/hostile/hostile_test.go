// Package hostile plays an attacker who can write to the database of an appliance, also while
// it runs, and one who can change its backup files. Neither holds a key. The tests alter every
// column of every record that the schema has, insert, delete, swap and restore records, create
// triggers, and forge backups. Then they run each operation that reads an altered record, and
// compare the rights that it granted with those that the people of the world hold.
package hostile

import (
	"context"
	"flag"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/hostile/world"
)

var sections = []struct {
	name string
	run  func(*stage, context.Context) error
}{
	{"the untouched world", (*stage).untouched},
	{"directed: a writer of the database", (*stage).directed},
	{"directed: a reader of the seal keys", (*stage).stolenSeals},
	{"directed: backup files", (*stage).files},
	{"schema", (*stage).schema},
	{"whole tables", (*stage).wholesale},
	{"records", (*stage).records},
	{"countersignd dev", (*stage).programs},
}

var printAll = flag.Bool("all", false, "print each case that was granted, conceded or crashed")

func TestMain(m *testing.M) {
	s := harness.Suite{Name: "hostile-test", Breaks: slices.Sorted(maps.Keys(breaks))}
	for _, section := range sections {
		s.Sections = append(s.Sections, section.name)
	}
	harness.Main(m, s)
}

// stage is the state that the sections share.
type stage struct {
	*harness.Report
	lab
	*table
	random *mathrand.Rand
	shown  map[string]int
	reads  map[string]map[string]bool // operations by the table that they read
}

// TestHostile runs a sample of the cases under -short.
func TestHostile(t *testing.T) {
	if harness.Break() != os.Getenv(builtWith) {
		rebuild(t)
	}
	harness.Run(t, func(r *harness.Report) {
		dir := harness.TempDir(t)
		s := &stage{
			Report: r, lab: lab{World: harness.Must(world.Build(t.Context(), dir)), dir: dir}, table: newTable(),
			random: harness.Seed(t), shown: map[string]int{}, reads: map[string]map[string]bool{},
		}
		for _, section := range sections {
			s.Section(section.name, func() { harness.Do(section.run(s, t.Context())) })
		}
		if harness.Break() == "seal" {
			s.Section("each record is proven", func() { harness.Do(s.prove(t.Context())) })
		}
		s.table.print(t.Output())
	})
}

// builtWith names the environment variable with the value of BREAK that the process, and
// countersignd in COUNTERSIGN_BIN, were built with.
const builtWith = "COUNTERSIGN_BUILT_WITH_BREAK"

// rebuild builds the tests and countersignd with the edits of BREAK, and replaces this process.
func rebuild(t *testing.T) {
	bin, err := harness.Must(harness.Built()).Broken(t.Context(), breaks[harness.Break()], "countersign/softhsm-test/hostile")
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "COUNTERSIGN_BIN="+string(bin), builtWith+"="+harness.Break())
	t.Fatal(syscall.Exec(filepath.Join(string(bin), "hostile.test"), os.Args, env))
}

// TestBreaks runs one break. TestEdits checks that the edits of the others fit the source.
func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Break: "seal", Args: []string{"-only", "directed: a writer"}, Exit: 1},
		harness.Broken{Break: "nonsense", Exit: 2},
		harness.Broken{Args: []string{"-only", "nothing"}, Exit: 2},
	)
}
