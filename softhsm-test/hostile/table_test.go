package hostile

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

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
