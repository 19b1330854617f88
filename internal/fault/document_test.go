package fault

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

var write = flag.Bool("write", false, "write docs/errors.md instead of comparing it")

// TestDocument: docs/errors.md is what go generate writes.
func TestDocument(t *testing.T) {
	const path = "../../docs/errors.md"
	if *write {
		if err := os.WriteFile(path, []byte(document()), 0o644); err != nil { //nolint:gosec // a public document
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != document() {
		t.Error("docs/errors.md is old: run go generate ./internal/fault")
	}
}

const preface = `# Errors

<!-- Generated from internal/fault by go generate ./internal/fault. Change the table there. -->

Every program prints "error:" with what happened, then "hint:" with what to do. A word in braces stands for a name, a path
or the cause below. Search this page for a part of the message that contains no name of your own.

No hint asks you to delete or overwrite a key, a database, an anchor or a token. If you think of doing it, read
[RECOVERY.md](RECOVERY.md) first.

## Exit codes

All programs use these codes, and scripts may rely on them.

| exit | name | meaning |
|---|---|---|
`

// document returns docs/errors.md.
func document() string {
	var b strings.Builder
	b.WriteString(preface)
	for _, c := range codes {
		fmt.Fprintf(&b, "| %d | %s | %s |\n", int(c.Code), c.name, c.meaning)
	}
	for _, t := range chapters {
		fmt.Fprintf(&b, "\n## %s\n\n| what it prints | exit | why, and what to do |\n|---|---|---|\n", t.title)
		for _, r := range t.rows {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", cell(r.Text), exitOf(r), cell(explanation(r)))
		}
	}
	return b.String()
}

// exitOf returns the exit code of a row, or a dash for a warning, which has none.
func exitOf(r Row) string {
	if r.Exit == OK {
		return "–"
	}
	return strconv.Itoa(int(r.Exit))
}

// explanation returns cause and advice as sentences.
func explanation(r Row) string {
	advice := r.Advice
	if advice != "" {
		if !startsWithCommand(advice) {
			advice = strings.ToUpper(advice[:1]) + advice[1:]
		}
		if !strings.ContainsAny(advice[len(advice)-1:], ".?!") {
			advice += "."
		}
	}
	return strings.TrimSpace(r.Cause + " " + advice)
}

// startsWithCommand reports whether an advice begins with the name of a program or a flag, which keeps its case.
func startsWithCommand(advice string) bool {
	for _, name := range []string{"countersign", "relayd", "chmod", "pkcs11-tool", "age-keygen", "hsm.", "store.", "state_dir", "init "} {
		if strings.HasPrefix(advice, name) {
			return true
		}
	}
	return false
}

// cell escapes what ends a cell of a table, or begins HTML.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`).Replace(s)
}
