// Package disaster loses an appliance and brings it back: clients with and without passwords,
// a UV key and a second approver, an ordinary and a strict device; a backup of the keys, a
// copy of the database, and shares of the backup key that Debian's age made and opens. Then
// token and state are destroyed. Restores that must fail do fail, some are killed (kill -9)
// at random moments, and one succeeds: everyone continues, at every level, without enrolling
// again.
package disaster

import (
	"context"
	"os"
	"testing"

	"countersign/softhsm-test/harness"
)

var sections = []struct {
	name string
	run  func(*stage, context.Context)
}{
	{"in business", (*stage).business},
	{"backup", (*stage).backUp},
	{"the disaster", (*stage).disaster},
	{"restores that fail", (*stage).refusals},
	{"a restore under kill -9", (*stage).kills},
	{"the restore", (*stage).restore},
	{"in business again", (*stage).again},
}

// Values of BREAK.
const (
	breakShare    = "share"    // a bit of a share's file is flipped
	breakSeal     = "seal"     // the sealed copy of wrap@1 is damaged when it is made
	breakDatabase = "database" // a bit of the copy of the database is flipped
)

func TestMain(m *testing.M) {
	s := harness.Suite{Name: "disaster-test", Breaks: []string{breakShare, breakSeal, breakDatabase}}
	for _, section := range sections {
		s.Sections = append(s.Sections, section.name)
	}
	harness.Main(m, s)
}

// edits make countersignd damage the sealed copy of wrap@1 when it makes it. A writer of the
// database cannot do that.
var edits = map[string][]harness.Edit{breakSeal: {{
	File: "appliance/keylife/carry.go", Old: "\t\trow.Sealed, row.SealedFor = made.Sealed[0], sealedFor\n",
	New: "\t\tif row.Name == keyring.Wrap && row.Version == 1 {\n\t\t\tmade.Sealed[0][len(made.Sealed[0])-1] ^= 1\n\t\t}\n\t\trow.Sealed, row.SealedFor = made.Sealed[0], sealedFor\n",
}}}

// TestDisaster skips the sections after one that failed. -short kills fewer restores.
func TestDisaster(t *testing.T) {
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

// withoutFailures leaves out the restores that fail and those that are killed.
const withoutFailures = "in business,backup,the disaster,the restore"

func TestEdits(t *testing.T) { harness.TestEdits(t, edits) }

func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Short: true, Break: breakShare, Exit: 1, Args: []string{"-only", withoutFailures}},
		harness.Broken{Break: breakSeal, Exit: 1, Args: []string{"-only", withoutFailures}},
		harness.Broken{Break: breakDatabase, Exit: 1, Args: []string{"-only", withoutFailures}},
		harness.Broken{Break: "nonsense", Exit: 2},
	)
}
