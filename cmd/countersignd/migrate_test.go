package main

import (
	"strings"
	"testing"
)

// TestListText: a name in the database cannot send control characters to the terminal.
func TestListText(t *testing.T) {
	out := listText([]string{"device evil", "device gate\x1b[1A\x1b[2K\x1b[1A\x1b[2K\rdevice gate\n"})
	if strings.ContainsAny(out, "\x1b\r") || strings.Count(out, "\n") != 2 {
		t.Errorf("a name in the list reaches the terminal as it is: %q", out)
	}
}
