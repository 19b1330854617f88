package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// table counts outcomes: records × operations × outcome.
type table struct {
	counts map[string]map[string]map[outcome]int // by record, then operation
}

func newTable() *table { return &table{counts: map[string]map[string]map[outcome]int{}} }

func (t *table) add(v verdict) {
	record := v.Table
	if record == "" {
		record = "directed"
	}
	if t.counts[record] == nil {
		t.counts[record] = map[string]map[outcome]int{}
	}
	if t.counts[record][v.operation.name] == nil {
		t.counts[record][v.operation.name] = map[outcome]int{}
	}
	t.counts[record][v.operation.name][v.outcome]++
}

// letters of the outcomes in the table.
var letters = []struct {
	outcome
	letter string
}{{refused, "r"}, {harmless, "h"}, {alarm, "a"}, {conceded, "c"}, {crashed, "x"}, {granted, "G"}}

// print writes one line for each record and operation, and the sum of each record.
func (t *table) print(out io.Writer) {
	fmt.Fprintln(out, "record × operation: refused, harmless, alarm, conceded, crashed (x), GRANTED")
	for _, record := range slices.Sorted(maps.Keys(t.counts)) {
		sum := map[outcome]int{}
		var cells []string
		for _, o := range operations {
			counts := t.counts[record][o.name]
			if len(counts) == 0 {
				continue
			}
			cells = append(cells, o.name+" "+spell(counts))
			for k, n := range counts {
				sum[k] += n
			}
		}
		fmt.Fprintf(out, "%-17s %s\n", record, spell(sum))
		for line := range wrapped(cells, 150) {
			fmt.Fprintf(out, "    %s\n", line)
		}
	}
}

func spell(counts map[outcome]int) string {
	var parts []string
	for _, l := range letters {
		if n := counts[l.outcome]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s%d", l.letter, n))
		}
	}
	return strings.Join(parts, " ")
}

// wrapped joins cells to lines of at most that many bytes, if they fit.
func wrapped(cells []string, width int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		line := ""
		for _, c := range cells {
			if line != "" && len(line)+len(c)+2 > width {
				if !yield(line) {
					return
				}
				line = ""
			}
			if line != "" {
				line += "; "
			}
			line += c
		}
		if line != "" {
			yield(line)
		}
	}
}

// proven reports which records had a case that was granted.
func (t *table) proven(record string) bool {
	for _, counts := range t.counts[record] {
		if counts[granted] > 0 {
			return true
		}
	}
	return false
}
