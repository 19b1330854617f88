package harden

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A child sees what is named and what it needs, and no secret of the environment.
func TestEnvironment(t *testing.T) {
	t.Setenv("TZ", "UTC")
	t.Setenv("CANARY_TOKEN", "canary")
	t.Setenv("GATE_PORT", "7")
	cmd := exec.Command("/usr/bin/env")
	cmd.Env = Environment([]string{"GATE_PORT", "NOT_SET"})
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(out))
	if !slices.Contains(lines, "TZ=UTC") || !slices.Contains(lines, "GATE_PORT=7") {
		t.Errorf("missing: %q", lines)
	}
	if strings.Contains(string(out), "canary") || strings.Contains(string(out), "NOT_SET") {
		t.Errorf("too much: %q", lines)
	}
	t.Setenv("PATH", "")
	for _, name := range base {
		t.Setenv(name, "x")
	}
	if n := len(Environment(nil)); n != len(base) {
		t.Errorf("%d variables, want %d", n, len(base))
	}
}
