// Command table reads the output of go test -json of package matrix and prints two tables:
// the capabilities of each module, or what it lacks, and the same for SoftHSM behind each mask.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// tables are the tests whose children are the rows, with the titles of their tables.
var tables = [...]table{
	{"TestModules/", "Modules", "module"},
	{"TestMasks/", "SoftHSM behind a mask of what the vendor documents (not tried on hardware)", "mask"},
}

type table struct{ root, title, first string }

// required are the modules without which the matrix fails.
var required = []string{"SoftHSM", "NSS softokn", "p11-kit-proxy"}

// columns are the capabilities in order, with their titles in the table.
var columns = [][2]string{
	{"P-256", "P-256"},
	{"P-384", "P-384"},
	{"Ed25519", "Ed25519"},
	{"PKCS1", "RSA PKCS#1"},
	{"PSS", "RSA PSS"},
	{"ECDH", "ECDH"},
	{"HMAC", "HMAC"},
	{"Password", "password check"},
	{"Sealed", "sealed copy, restore"},
	{"Certificate", "certificate"},
}

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		_, _ = fmt.Fprintln(stderr, "table reads go test -json from standard input")
		return 2
	}
	modules, err := read(stdin)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "reading go test -json:", err)
		return 1
	}
	return print(stdout, modules)
}

// module holds the results of the tests of one module, or behind one mask.
type module struct {
	table              int    // in tables
	name, version, why string // why it has no capabilities
	failed             bool
	tests              []test // below it, in order of their end
}

type test struct{ name, action, output string }

// event is a line of go test -json (go doc test2json).
type event struct{ Action, Test, Output string }

func read(r io.Reader) ([]*module, error) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	output, modules := map[string]string{}, []*module{}
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			continue
		}
		i := slices.IndexFunc(tables[:], func(t table) bool { return strings.HasPrefix(e.Test, t.root) })
		if i < 0 {
			continue
		}
		name, below, _ := strings.Cut(strings.TrimPrefix(e.Test, tables[i].root), "/")
		m := find(&modules, module{table: i, name: strings.ReplaceAll(name, "_", " ")})
		switch e.Action {
		case "output":
			output[e.Test] += e.Output
		case "pass", "fail", "skip":
			m.end(test{below, e.Action, output[e.Test]})
		}
	}
	return modules, in.Err()
}

func find(modules *[]*module, like module) *module {
	for _, m := range *modules {
		if m.table == like.table && m.name == like.name {
			return m
		}
	}
	*modules = append(*modules, &like)
	return &like
}

var logLine = regexp.MustCompile(`(?m)^\s+\S+\.go:\d+: (.*)$`)

// end notes how a test ended. The module's own test has no name.
func (m *module) end(t test) {
	if t.name != "" {
		m.tests = append(m.tests, t)
		return
	}
	m.failed = t.action == "fail"
	for _, line := range logLine.FindAllStringSubmatch(t.output, -1) {
		if version, ok := strings.CutPrefix(line[1], "version: "); ok {
			m.version = version
		} else if m.why == "" {
			m.why = line[1][strings.LastIndex(line[1], ".so: ")+1:]
			m.why = strings.TrimPrefix(m.why, "so: ")
		}
	}
}

func print(w io.Writer, modules []*module) int {
	var rows [len(tables)]int
	passed, failed := 0, 0
	for _, m := range modules {
		rows[m.table]++
		switch {
		case m.failed && len(m.tests) > 0, !m.serves() && m.required():
			failed++
		case m.serves():
			passed++
		}
	}
	for _, name := range required {
		if !slices.ContainsFunc(modules, func(m *module) bool { return m.name == name }) {
			failed++
		}
	}
	for i := range tables {
		printTable(w, i, modules)
	}
	for _, m := range modules {
		m.printFailures(w)
	}
	_, _ = fmt.Fprintf(w, "\nhsm-matrix: %d modules, %d masks, %d passed, %d failed\n", rows[0], rows[1], passed, failed)
	if failed > 0 || rows[0] == 0 {
		return 1
	}
	return 0
}

// required reports whether the matrix fails without the module.
func (m *module) required() bool { return m.table == 0 && slices.Contains(required, m.name) }

func printTable(w io.Writer, i int, modules []*module) {
	head, rule := "| "+tables[i].first+" |", "|---|"
	for _, c := range columns {
		head, rule = head+" "+c[1]+" |", rule+"---|"
	}
	_, _ = fmt.Fprintf(w, "\n%s:\n\n%s\n%s\n", tables[i].title, head, rule)
	for _, m := range modules {
		if m.table == i {
			_, _ = fmt.Fprintln(w, m.row())
		}
	}
}

// printFailures names the tests that failed, which may belong to no column.
func (m *module) printFailures(w io.Writer) {
	for _, t := range m.tests {
		if t.action == "fail" && !m.inner(t.name) {
			_, _ = fmt.Fprintf(w, "\nfailed: %s, %s\n%s", m.name, t.name, t.output)
		}
	}
}

// serves reports whether at least one capability works.
func (m *module) serves() bool {
	return slices.ContainsFunc(columns, func(c [2]string) bool { return strings.HasPrefix(m.cell(c[0]), "yes") })
}

func (m *module) row() string {
	row := "| " + strings.TrimSpace(m.name+", "+m.version) + " |"
	if len(m.tests) == 0 {
		return row + " " + m.why + " |" + strings.Repeat(" |", len(columns)-1)
	}
	for _, c := range columns {
		row += " " + m.cell(c[0]) + " |"
	}
	return row
}

// cell is yes only when the tests of a capability ran and passed.
func (m *module) cell(capability string) string {
	var passed int
	var lacking, skipped []string
	for _, t := range m.tests {
		below, ok := strings.CutPrefix(t.name, capability+"/")
		if !ok || m.inner(t.name) {
			continue
		}
		switch t.action {
		case "fail":
			return "failed"
		case "pass":
			passed++
		case "skip":
			skipped = append(skipped, below[strings.LastIndex(below, "/")+1:])
			lacking = append(lacking, names(t.output)...)
		}
	}
	slices.Sort(lacking)
	missing := strings.Join(slices.Compact(lacking), ", ")
	switch {
	case passed > 0 && len(skipped) == 0:
		return "yes"
	case passed > len(skipped):
		slices.Sort(skipped)
		return "yes, without " + strings.Join(slices.Compact(skipped), ", ")
	case missing == "":
		return "no"
	}
	return missing
}

// inner reports whether a test has subtests.
func (m *module) inner(name string) bool {
	return slices.ContainsFunc(m.tests, func(t test) bool { return strings.HasPrefix(t.name, name+"/") })
}

var mechanism = regexp.MustCompile(`CK[MRO]_[A-Z0-9_]+`)

// names returns the mechanisms that a skipped test lacks, or a return code in their place.
func names(output string) (all []string) {
	for _, name := range mechanism.FindAllString(output, -1) {
		if strings.HasPrefix(name, "CKR_") && len(all) > 0 {
			continue
		}
		all = append(all, name)
	}
	return all
}
