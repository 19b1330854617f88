package pool

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
)

// TestStartNamesTheEnd: if a worker ends while it opens the token, the error names the signal or the exit code.
func TestStartNamesTheEnd(t *testing.T) {
	for script, want := range map[string]string{
		"kill -SEGV $$": "signal: segmentation fault",
		"kill -SYS $$":  "signal: bad system call",
		"exit 3":        "exit status 3",
	} {
		binary := filepath.Join(t.TempDir(), "hsm-worker")
		if err := os.WriteFile(binary, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		p, err := Open(t.Context(), Config{
			Binary: binary, Module: "none.so", TokenLabel: "none", PIN: hsm.PIN("1234"), Workers: 1, Logger: hclog.NewNullLogger(),
		})
		if err == nil {
			p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), binary+" ended") {
			t.Errorf("%s: %v", script, err)
		}
	}
}
