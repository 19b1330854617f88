package relay

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
	"countersign/protocol/message"
)

// TestHookCheck: what keeps the kernel from starting a program is found without starting it.
func TestHookCheck(t *testing.T) {
	self, err := os.ReadFile("/bin/sh") // a binary, most likely with a dynamic loader
	must(t, err)
	withoutLoader := []byte(strings.ReplaceAll(string(self), "/ld-", "/xx-"))
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string // part of the error; "": it can be started
	}{
		"script":              {"#!/bin/sh\nexit 0\n", 0o700, ""},
		"script, blanks":      {"#! /bin/sh -e\n", 0o700, ""},
		"env":                 {"#!/usr/bin/env sh\n", 0o700, ""},
		"no line end":         {"#!/bin/sh", 0o700, ""},
		"binary":              {string(self), 0o700, ""},
		"unknown binary":      {"\x00asm\x01", 0o700, ""},
		"not executable":      {"#!/bin/sh\n", 0o600, "permission denied"},
		"CR LF":               {"#!/bin/sh\r\nexit 0\r\n", 0o700, "CR LF"},
		"missing interpreter": {"#!/nonexistent/sh\n", 0o700, "/nonexistent/sh"},
		"empty #!":            {"#!\n", 0o700, "names no interpreter"},
		"no #!":               {"echo hello\n", 0o700, "does not name an interpreter"},
		"empty":               {"", 0o700, "does not name an interpreter"},
		"cut binary":          {string(self[:32]), 0o700, "not a complete program"},
		"missing loader":      {string(withoutLoader), 0o700, "dynamic loader"},
		"missing":             {"", 0, "no such file"},
		"directory":           {"", os.ModeDir, "is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "hook")
			switch {
			case c.mode.IsDir():
				must(t, os.Mkdir(path, 0o700))
			case c.mode != 0:
				must(t, os.WriteFile(path, []byte(c.text), c.mode))
			}
			err := Hook{Command: []string{path}}.Check()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	for _, command := range [][]string{nil, {"sh", "-c", "exit 0"}} {
		if err := (Hook{Command: command}).Check(); err != nil {
			t.Errorf("%v: %v", command, err)
		}
	}
	if err := (Hook{Command: []string{"no-such-program"}}).Check(); err == nil {
		t.Error("a program that is not in PATH")
	}
}

// TestNoM1WithoutHook: a device that could not act takes no M1, until its hook is mended.
func TestNoM1WithoutHook(t *testing.T) {
	f, c := enrolled(t)
	hook := filepath.Join(t.TempDir(), "hook")
	c.Hook.Command = []string{hook}
	g := start(t, f, c)
	p := g.phone(t, 100)
	wantError(t, ask1(t, p.conn, p.m1), message.LinkError{Code: protocol.CodeLink})
	if err := g.relay.CheckHook(); err == nil {
		t.Error("the hook is missing")
	}
	must(t, os.WriteFile(hook, []byte("#!/bin/sh\ncat >/dev/null\n"), 0o700))
	p.challenge(protocol.Approve)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
		t.Errorf("after the hook was mended: %v", p4.Result)
	}
}

// TestHookOutput: each line of the hook's standard error is logged, and none of it stops the act.
func TestHookOutput(t *testing.T) {
	f, c := enrolled(t)
	log := &lockedBuffer{}
	c.Log = hclog.New(&hclog.LoggerOptions{Output: log, JSONFormat: true})
	c.Hook.Command = []string{"/bin/sh", "-c", `cat >/dev/null; echo "gate is open" >&2; head -c 200000 /dev/zero | tr "\0" x >&2; echo >&2; echo done >&2`}
	g := start(t, f, c)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
		t.Errorf("phone got %v", p4.Result)
	}
	eventually(t, "the output is logged", func() bool { return strings.Contains(log.String(), `"line":"done"`) })
	if text := log.String(); !strings.Contains(text, `"line":"gate is open"`) || len(text) > 20000 {
		t.Errorf("%d bytes: %.2000s", len(text), text)
	}
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
