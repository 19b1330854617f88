package fault

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestCodes(t *testing.T) {
	want := map[string]int{
		"ok": 0, "failed": 1, "usage": 2, "denied": 3, "bad-signature": 4, "not-found": 5,
		"unavailable": 69, "io": 74, "try-again": 75, "auth": 77, "config": 78, "interrupted": 130,
	}
	if len(want) != len(codes) {
		t.Errorf("%d codes have names, want %d", len(codes), len(want))
	}
	for name, number := range want {
		if c := Code(number); c.String() != name {
			t.Errorf("%d: %v", number, c)
		}
	}
	if Code(99).String() != "99" {
		t.Error("a code that does not exist has a name")
	}
}

func TestOf(t *testing.T) {
	cause := errors.New("no space")
	for _, c := range []struct {
		row          Row
		text, advice string
	}{
		{Row{Text: "no space"}, "no space", ""},
		{Row{Text: "writing {path}: {error}", Advice: "look at {path}"}.With("path", "/x"), "writing /x: no space", "look at /x"},
	} {
		c.row.Exit = IO
		err := c.row.Of(cause)
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, cause) || err.Error() != c.text || e.ExitCode() != 74 || e.Hint() != c.advice {
			t.Errorf("%v: %+v", err, e)
		}
		if c.row.Of(nil) != nil {
			t.Error("no error became one")
		}
	}
	if err := (Row{Text: "no {thing}"}).With("thing", "store").Error(); err.Error() != "no store" {
		t.Error(err)
	}
	word := (Row{Text: "unknown command {word} for {command}"}).With("word", "{command}", "command", "relayd")
	if err := word.Error(); err.Error() != "unknown command {command} for relayd" {
		t.Errorf("a value was taken for a placeholder: %v", err)
	}
}

// harm matches advice that would destroy what may be the last copy. "Never" and "not" before it are fine.
var harm = regexp.MustCompile(`(?i)(initiali[sz]e the (other )?token|initiali[sz]e it again|delete|wipe|erase|remove (the|its|your)|rm -|init first)`)

// TestRows: every row says something, has a known exit code, and no hint asks to destroy.
func TestRows(t *testing.T) {
	for _, chapter := range chapters {
		for _, r := range chapter.rows {
			name := chapter.title + ": " + r.Text
			if r.Exit == OK && chapter != doctor || r.Exit.String() == strconv.Itoa(int(r.Exit)) {
				t.Errorf("%s: exit code %v", name, r.Exit)
			}
			if r.Text == "" || r.Cause == "" && (r.Text == placeholder || r.Advice == "") {
				t.Errorf("%s: nothing says why it happens or what to do", name)
			}
			if r.Cause != "" && !strings.HasSuffix(r.Cause, ".") || strings.HasSuffix(r.Advice, ".") {
				t.Errorf("%s: want a cause of whole sentences, and an advice without a period", name)
			}
			if found := harm.FindString(r.Advice); found != "" {
				t.Errorf("%s: the advice may destroy the last copy: %q", name, found)
			}
		}
	}
}
