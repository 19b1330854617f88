package cli

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestProgressOfAScript: an output that is not a terminal gets one line.
func TestProgressOfAScript(t *testing.T) {
	var out bytes.Buffer
	p := StartProgress(&out, "measuring", 28*time.Second)
	p.Step("mac")
	p.End()
	if got := out.String(); got != "measuring: takes about 28s\n" {
		t.Errorf("%q", got)
	}
}

// TestProgressOnATerminal: a terminal gets one line, which is written again and removed at the end.
func TestProgressOnATerminal(t *testing.T) {
	user, program := openTerminal(t)
	p := StartProgress(program, "measuring", time.Hour)
	p.Step("mac\x1b")
	p.End()
	if _, err := program.WriteString("end\n"); err != nil {
		t.Fatal(err)
	}
	got, err := bufio.NewReader(user).ReadString('\n')
	const clear = "\r\x1b[K"
	want := clear + "measuring, about 1h0m0s left" + clear + `mac\u001b, about 1h0m0s left` + clear + "end"
	if err != nil || strings.TrimRight(got, "\r\n") != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
