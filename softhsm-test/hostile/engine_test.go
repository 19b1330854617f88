package hostile

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

// count is one case: it passes unless something was granted that should not be, or the
// appliance could not cope with what it read.
func (s *stage) count(v verdict) {
	s.table.add(v)
	if v.outcome == crashed {
		s.once(v.err.Error(), "crashed: %s: %v", v.attempt, v.err)
	}
	if *printAll && v.outcome >= conceded {
		s.Say("%s: %s: %v %v", v.outcome, v.attempt, v.extra, v.err)
	}
	unread := v.outcome != alarm && v.err != nil && strings.Contains(v.err.Error(), "sql: Scan error")
	s.Check(v.outcome != granted && v.outcome != crashed && !unread, "%s %v by %s: %v", v.outcome, v.extra, v.attempt, v.err)
}

// once says something the first time that it is said.
func (s *stage) once(what, format string, args ...any) {
	if s.shown[what]++; s.shown[what] == 1 {
		s.Say(format, args...)
	}
}

// nothing alters nothing.
var nothing = rows.SQL("nothing")

// untouched holds what each operation says that it grants against the world as it is.
func (s *stage) untouched(ctx context.Context) {
	var cases []attempt
	for _, o := range operations {
		cases = append(cases, attempt{Alteration: nothing, operation: o})
	}
	s.all(ctx, cases, func(v verdict) {
		missing := slices.DeleteFunc(slices.Clone(v.honest), func(g grant) bool { return strings.Contains(v.told, g.what) })
		s.Check(v.outcome != granted && len(missing) == 0, "%s: more than it should: %v; missing: %v; %v", v.operation.name, v.extra, missing, v.err)
	})
}

// wholesale takes, spoils and puts back whole tables under every operation. What changes by that
// reads the table.
func (s *stage) wholesale(ctx context.Context) {
	tables := harness.Must(rows.Read(ctx, s.Template))
	usual := s.usual(ctx)
	earlier := s.earlier(ctx)
	var cases []attempt
	all := append(rows.Wholesale(tables), rows.Rollbacks(earlier...)...)
	for n, then := range earlier {
		back := rows.RollBack(n, then).Beside(func(path string) error {
			return world.CopyFile(world.AnchorOf(path), world.AnchorOf(s.Earlier[n]))
		})
		back.Table = everything
		all = append(all, back, rows.RollBack(n, then, strings.Split(together, "+")...))
	}
	for _, a := range all {
		for i, o := range operations {
			cases = append(cases, attempt{a, o, a.Replays && i%2 == 1})
			if a.Replays && concededTables[a.Table] { // what comes of it is all shown
				cases = append(cases, attempt{a, o, i%2 == 0})
			}
		}
	}
	s.all(ctx, s.sample(cases, quickWhole), func(v verdict) {
		s.count(v)
		if (v.Kind == rows.Empty || v.Kind == rows.Mangle) && plain(v.told) != usual[v.operation.name] {
			s.read(v.Table, v.operation.name)
		}
	})
	if testing.Short() { // what reads a table is not known then, and records are altered under all operations
		clear(s.reads)
		return
	}
	for _, t := range tables {
		if n := len(s.reads[t.Name]); n == 0 || n < 8 {
			s.Say("table %s is read by %v", t.Name, slices.Sorted(maps.Keys(s.reads[t.Name])))
		} else {
			s.Say("table %s is read by %d operations", t.Name, n)
		}
	}
}

func (s *stage) read(table, operation string) {
	if s.reads[table] == nil {
		s.reads[table] = map[string]bool{}
	}
	s.reads[table][operation] = true
}

// usual holds the result of each operation in the untouched world.
func (s *stage) usual(ctx context.Context) map[string]string {
	told := map[string]string{}
	var cases []attempt
	for _, o := range operations {
		cases = append(cases, attempt{Alteration: nothing, operation: o})
	}
	s.all(ctx, cases, func(v verdict) { told[v.operation.name] = plain(v.told) })
	return told
}

// plain takes out of a text what differs each time: ids and paths.
func plain(text string) string {
	var words []string
	for w := range strings.FieldsSeq(text) {
		if !strings.ContainsAny(w, "/") && len(strings.Trim(w, "0123456789abcdef.:,")) > 0 {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

func named(name string) operation {
	i := slices.IndexFunc(operations, func(o operation) bool { return o.name == name })
	if i < 0 {
		panic("no operation " + name)
	}
	return operations[i]
}

// Cases of the sections that are sampled.
const (
	recordCases = 5000
	quickCases  = 120
	quickSchema = 8
	quickWhole  = 40
)

// records alters records one by one, under the operations that read their table.
func (s *stage) records(ctx context.Context) {
	now := harness.Must(rows.Read(ctx, s.Template))
	earlier := s.earlier(ctx)
	cases := s.spread(rows.Generate(now, earlier...))
	n := recordCases
	if testing.Short() {
		n = quickCases
	}
	s.Say("%d cases of %d, the first of them one of each column and way to alter it", min(n, len(cases)), len(cases))
	s.all(ctx, cases[:min(n, len(cases))], s.count)
}

// earlier is the database as it once was.
func (s *stage) earlier(ctx context.Context) (all [][]rows.Table) {
	for _, path := range s.Earlier {
		then := harness.Must(rows.Read(ctx, path))
		all = append(all, then)
	}
	return all
}

// spread orders cases so that any number of the first ones have of everything: one of
// each column and kind of alteration, then another, and so on, with operations that take
// turns.
func (s *stage) spread(all []rows.Alteration) (cases []attempt) {
	groups := map[string][]attempt{}
	for _, a := range all {
		group := fmt.Sprintf("%s.%s %s", a.Table, a.Column, a.Kind)
		for _, o := range operations {
			if len(s.reads) == 0 || s.reads[a.Table][o.name] {
				groups[group] = append(groups[group], attempt{a, o, s.random.IntN(3) == 0})
			}
		}
	}
	names := slices.Sorted(maps.Keys(groups))
	for _, name := range names {
		s.random.Shuffle(len(groups[name]), func(i, j int) { g := groups[name]; g[i], g[j] = g[j], g[i] })
	}
	s.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for turn := 0; ; turn++ {
		before := len(cases)
		for _, name := range names {
			if turn < len(groups[name]) {
				cases = append(cases, groups[name][turn])
			}
		}
		if len(cases) == before {
			return cases
		}
	}
}

// sample takes n cases of all in a quick run.
func (s *stage) sample(cases []attempt, n int) []attempt {
	if !testing.Short() || len(cases) <= n {
		return cases
	}
	s.random.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
	return cases[:n]
}

// unproved are tables from which no authority flows: audit records are read by people.
var unproved = []string{"record"}

// authorities are what a grant is of, each with words that its kind has and no other.
var authorities = map[string]string{
	"approval": " approved: ", "enrolment": "\" enrolled ", "certificate": "certificate", "role": "roles approver", "key": "key ", "vote": " is executed",
}

// prove holds BREAK=seal to its word: each record that is altered, and each kind of
// authority, has a case that is granted when no seal is checked.
func (s *stage) prove(ctx context.Context) {
	tables, err := rows.Read(ctx, s.Template)
	for _, t := range tables {
		if !slices.Contains(unproved, t.Name) {
			s.Check(s.table.proven(t.Name), "unproven: no alteration of %s grants anything", t.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(authorities)) {
		s.Check(slices.ContainsFunc(s.table.gave, func(g string) bool { return strings.Contains(g, authorities[name]) }),
			"unproven: nothing forged is granted that is a %s", name)
	}
	harness.Do(err)
}

// table counts outcomes: records × operations × outcome.
type table struct {
	counts map[string]map[string]tally // by record, then operation
	gave   []string                    // rights that were wrongly granted
}

type tally map[outcome]int

func newTable() *table { return &table{counts: map[string]map[string]tally{}} }

func (t *table) add(v verdict) {
	if t.counts[v.Table] == nil {
		t.counts[v.Table] = map[string]tally{}
	}
	if t.counts[v.Table][v.operation.name] == nil {
		t.counts[v.Table][v.operation.name] = tally{}
	}
	t.counts[v.Table][v.operation.name][v.outcome]++
	if v.outcome == granted {
		for _, g := range v.extra {
			t.gave = append(t.gave, g.what)
		}
	}
}

// letters of the outcomes in the table.
var letters = []struct {
	outcome
	letter string
}{{refused, "r"}, {harmless, "h"}, {alarm, "a"}, {conceded, "c"}, {crashed, "x"}, {granted, "G"}}

// print writes a line for each record with a column for each group of operations. Below
// it stand the operations that granted what they should not.
func (t *table) print(out io.Writer) {
	if len(t.counts) == 0 {
		return
	}
	fmt.Fprintln(out, "cases by outcome: r refused, h harmless, a alarm, c conceded, x crashed, G GRANTED")
	fmt.Fprintf(out, "%-17s", "record")
	for _, g := range groups {
		fmt.Fprintf(out, " %-24s", g.name)
	}
	fmt.Fprintln(out)
	for _, record := range slices.Sorted(maps.Keys(t.counts)) {
		line := fmt.Sprintf("%-17s", record)
		for _, g := range groups {
			line += fmt.Sprintf(" %-24s", t.sum(record, g.operations))
		}
		fmt.Fprintln(out, strings.TrimRight(line, " "))
	}
	t.printGranted(out)
}

func (t *table) printGranted(out io.Writer) {
	for _, record := range slices.Sorted(maps.Keys(t.counts)) {
		for _, o := range operations {
			if n := t.counts[record][o.name][granted]; n > 0 {
				fmt.Fprintf(out, "GRANTED %4d by %s: %s\n", n, record, o.name)
			}
		}
	}
}

func (t *table) sum(record string, of []operation) tally {
	sum := tally{}
	for _, o := range of {
		for k, n := range t.counts[record][o.name] {
			sum[k] += n
		}
	}
	return sum
}

func (t tally) String() string {
	var parts []string
	for _, l := range letters {
		if n := t[l.outcome]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s%d", l.letter, n))
		}
	}
	if parts == nil {
		return "-"
	}
	return strings.Join(parts, " ")
}

// proven reports whether a case of a record was granted.
func (t *table) proven(record string) bool { return t.sum(record, operations)[granted] > 0 }
