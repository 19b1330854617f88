// Package hostile plays an attacker who can write to the database of an appliance, also while
// it runs, and one who can change its backup files. Neither holds a key. The tests alter every
// column of every record that the schema has, insert, delete, swap and restore records, create
// triggers, and forge backups. Then they run each operation that reads an altered record, and
// compare the rights that it granted with those that the people of the world hold.
package hostile

import (
	"context"
	"errors"
	"flag"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

var sections = []struct {
	name string
	run  func(*stage, context.Context)
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

// TestHostile runs a sample of the cases under -quick, and only the untouched world under
// `go test -short`.
func TestHostile(t *testing.T) {
	t.Parallel()
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
			s.Section(section.name, func() { section.run(s, t.Context()) })
			if harness.Brief() {
				return
			}
		}
		if harness.Break() == "seal" {
			s.Section("each record is proven", func() { s.prove(t.Context()) })
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

// TestBreaks runs one break of those that `make hostile-test` knows. TestEdits checks that the edits of the others fit the source.
func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Short: true, Break: "seal", Args: []string{"-only", "directed: a writer"}, Exit: 1},
		harness.Broken{Break: "nonsense", Exit: 2},
		harness.Broken{Args: []string{"-only", "nothing"}, Exit: 2},
	)
}

func edit(file, old, to string) harness.Edit { return harness.Edit{File: file, Old: old, New: to} }

// Files that are broken.
const (
	sealGo     = "appliance/store/seal.go"
	headGo     = "appliance/store/head/head.go"
	schemaGo   = "appliance/store/sqlite/schema.go"
	chainGo    = "appliance/keyring/chain/chain.go"
	keysGo     = "appliance/keyuse/keys.go"
	signedGo   = "appliance/recovery/backup/signed.go"
	answerGo   = "appliance/authorize/answer.go"
	evidenceGo = "appliance/authorize/evidence.go"
	recordGo   = "appliance/change/quorum/record.go"
)

// unhung: what hangs on the head is not compared with it.
var unhung = []harness.Edit{
	edit(headGo, "err == nil && all.digest() != h.Digests[kind] {", "false && all.digest() != h.Digests[kind] {"),
	edit(headGo, "want != nil && want.digest() != m.Head.Digests[kind] {", "false && want != nil {"),
	edit(headGo, "if err == nil && version == h.Policy && sha256.Sum256(p.Document) != h.PolicyHash {", "if false {"),
}

// breaks are the values of BREAK, each with what it breaks.
var breaks = map[string][]harness.Edit{
	// Nothing that was written to the database is told from what the appliance wrote: no
	// seal, and no digest of seals.
	"seal": append([]harness.Edit{
		edit(sealGo, "func (s *Seals) Check(r Sealed, seal Seal) error {\n", "func (s *Seals) Check(r Sealed, seal Seal) error {\n\tif r != nil {\n\t\treturn nil\n\t}\n"),
	}, unhung...),
	// A stored decision is signed without being rebuilt, and a record is valid without its
	// change request.
	"rebuild": {
		edit(answerGo, "if c.seen.code != 0 {", "if false {"),
		edit(
			answerGo, "if want.Result != out.Result || want.Reason != out.Reason || !bytes.Equal(d.Marshal(), out.Decision.Marshal()) {",
			"if d = out.Decision; false && !bytes.Equal(d.Marshal(), out.Decision.Marshal()) {",
		),
		edit(evidenceGo, "if err == nil && !cert.Doubtful && !cert.SameParty(i.keys) {", "if err = nil; false {"),
		edit(recordGo, "if r.Change == (change.ID{}) {", "if r.Fits != nil {\n\t\treturn nil\n\t}\n\tif r.Change == (change.ID{}) {"),
	},
	// Foreign triggers, tables and columns are not looked for.
	"schema": {
		edit(schemaGo, "len(names) > 0 {\n\t\treturn v.seals.Report(", "false {\n\t\treturn v.seals.Report("),
		edit(schemaGo, "v.foreign || schema != v.cookie; v.foreign {", "v.foreign || schema != v.cookie; false {"),
	},
	// The root of the database, and of a backup, is believed.
	"root": {
		edit(chainGo, "func (p Pins) in(c chain) error {\n", "func (p Pins) in(c chain) error {\n\tif c.roots != nil {\n\t\treturn nil\n\t}\n"),
		edit(keysGo, "err = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)", "_ = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)"),
		edit(signedGo, "if !slices.ContainsFunc(roots, func(r trust.RootCert) bool { return r.Key == known.Root }) {", "if !slices.ContainsFunc(roots, func(r trust.RootCert) bool { return r.Key != known.Root || true }) {"),
	},
	// The head is not checked: missing and old records are not noticed.
	"head": append([]harness.Edit{
		edit(headGo, "if !allows(floor, h) || h.MAC != store.ParseSeal(seal).Version {", "if false {"),
		edit(headGo, "if h.MAC < floor.MAC {", "if false {"),
	}, unhung...),
}

// TestJudge holds the oracle: what the untouched world gives, or less, is fine.
func TestJudge(t *testing.T) {
	o := operation{name: "x", honest: []grant{{"door", 2}}}
	table := func(name string, replays bool) attempt {
		return attempt{Alteration: rows.Alteration{Table: name, Replays: replays}, operation: o}
	}
	denied := errors.New("denied")
	for _, c := range []struct {
		name   string
		at     attempt
		grants []grant
		err    error
		want   outcome
	}{
		{"as ever", table("client", false), []grant{{"door", 2}}, nil, harmless},
		{"at a higher level", table("client", false), []grant{{"door", 3}}, nil, harmless},
		{"nothing", table("client", false), nil, nil, refused},
		{"an error", table("client", false), nil, denied, refused},
		{"a forgery that is told", table("client", false), nil, errors.New("a record does not fit its seal"), alarm},
		{"at a lower level", table("client", false), []grant{{"door", 1}}, nil, granted},
		{"another door, and an error", table("client", false), []grant{{"safe", 2}}, denied, granted},
		{"a record as it once was", table("client", true), []grant{{"safe", 2}}, nil, conceded},
		{"a policy as it once was", table("policy", true), []grant{{"safe", 2}}, nil, granted},
		{"a panic", table("client", false), nil, errPanic, crashed},
	} {
		if v := judge(c.at, nil, c.grants, c.err); v.outcome != c.want {
			t.Errorf("%s: %s, want %s", c.name, v.outcome, c.want)
		}
	}
}

// TestEdits: the edits of each break fit the source.
func TestEdits(t *testing.T) { harness.TestEdits(t, breaks) }
