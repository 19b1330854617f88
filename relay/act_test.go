package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/relay/journal"
	"countersign/relay/link"
	"countersign/relay/uplink"
)

func TestHookOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   bool
	}{
		"exit 0":             {"exit 0", true},
		"exit 1":             {"cat >/dev/null; exit 1", false},
		"signal":             {"kill -9 $$", false},
		"hangs":              {"sleep 600 & wait", false},
		"leaves a child":     {"sleep 600 <&0 & exit 0", true},
		"disappears":         {"", false},
		"reads to the end":   {`read -r line && [ "${line%\}}" != "$line" ] && ! read -r more`, true},
		"closes its input":   {"exec <&-; exit 0", true},
		"its environment":    {`[ -z "$RELAY_SECRET" ] && [ "$GATE_PORT" = 7 ] && [ -n "$PATH" ]`, true},
		"a group of its own": {`[ "$(ps -o pgid= -p $$ | tr -d ' ')" = $$ ]`, true},
	} {
		t.Run(name, func(t *testing.T) {
			f, conf := enrolled(t)
			t.Setenv("RELAY_SECRET", "canary")
			t.Setenv("GATE_PORT", "7")
			conf.Hook = Hook{Command: []string{"/bin/sh", "-c", c.script}, Timeout: 300 * time.Millisecond, Environment: []string{"GATE_PORT"}}
			program := filepath.Join(t.TempDir(), "hook")
			if c.script == "" {
				must(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700))
				conf.Hook.Command = []string{program}
			}
			g := start(t, f, conf)
			p := g.phone(t, 100)
			p.challenge(protocol.Approve)
			_ = os.Remove(program) // one case has it
			if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
				t.Errorf("phone got %v", p4.Result)
			}
			eventually(t, "the outcome is reported", func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return len(g.outcomes) == 1
			})
			for _, performed := range g.outcomes {
				if performed != c.want {
					t.Errorf("reported performed %v, want %v", performed, c.want)
				}
			}
		})
	}
}

func TestPhoneDoesNotWaitForSlowHook(t *testing.T) {
	f, c := enrolled(t)
	fifo := filepath.Join(c.StateDir, "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))
	c.Hook.Command, c.ActWait = []string{"/bin/sh", "-c", `cat "$0"`, fifo}, time.Millisecond
	g := start(t, f, c)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	if p4 := p.finish(p.conn); p4.Result != protocol.ResultApproved {
		t.Errorf("phone got %v", p4.Result)
	}
	if got := strings.Join(g.steps(t), " "); got != "started" {
		t.Errorf("journal says %q while the hook runs, want started", got)
	}
	end, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	must(t, err)
	must(t, end.Close())
	eventually(t, "the act is done", func() bool { return strings.HasPrefix(strings.Join(g.steps(t), " "), "started done") })
}

func TestOutcomesAreRepeated(t *testing.T) {
	f, c := enrolled(t)
	f.fail["/v1/outcome"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }
	g := start(t, f, c)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	eventually(t, "the report is tried", func() bool { return g.count("/v1/outcome") > 0 })
	must(t, g.stop())
	g.set(func() { delete(g.fail, "/v1/outcome") })
	g = start(t, f, c)
	eventually(t, "the next run reports it", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.outcomes) == 1
	})
	eventually(t, "the journal is settled", func() bool { return strings.Join(g.steps(t), " ") == "started done settled" })
}

// TestOutcomeIsStored: only 204 means that the appliance has stored an outcome.
func TestOutcomeIsStored(t *testing.T) {
	f, c := enrolled(t)
	statuses := []int{200, 202, 205}
	f.fail["/v1/outcome"] = func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(statuses[(f.count("/v1/outcome")-1)%len(statuses)])
	}
	g := start(t, f, c)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	eventually(t, "the report is tried with each answer", func() bool { return g.count("/v1/outcome") >= len(statuses) })
	if steps := strings.Join(g.steps(t), " "); steps != "started done" {
		t.Errorf("the journal has %q", steps)
	}
	g.set(func() { delete(g.fail, "/v1/outcome") })
	eventually(t, "the journal is settled", func() bool { return strings.Join(g.steps(t), " ") == "started done settled" })
}

func TestRefusedOutcomeIsGivenUp(t *testing.T) {
	f, c := enrolled(t)
	f.fail["/v1/outcome"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }
	g := start(t, f, c)
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	eventually(t, "the journal is settled", func() bool { return strings.Join(g.steps(t), " ") == "started done settled" })
}

// crashEnv makes this test binary a relay with these arguments: directory, URL, CA file, link.
const crashEnv = "RELAY_TEST_CRASH"

func TestMain(m *testing.M) {
	if args := strings.Split(os.Getenv(crashEnv), "\n"); len(args) == 4 {
		crashing(args)
	}
	os.Exit(m.Run())
}

// crashing runs a relay whose hook acts and then kills the relay.
func crashing(args []string) {
	r, err := New(Config{
		StateDir: args[0], URL: args[1], CAFile: args[2], Floor: 1, Links: []Link{{args[3], deviceapi.LinkWire}},
		Orders: Orders{Accept: []protocol.Service{100}},
		Hook:   Hook{Command: []string{"/bin/sh", "-c", `cat >> "$0"; kill -9 $PPID`, filepath.Join(args[0], "hook.log")}},
	})
	if err != nil {
		os.Exit(3)
	}
	_ = r.Serve(context.Background()) // it is killed
	os.Exit(4)
}

func TestCrashDuringAct(t *testing.T) {
	f, c := enrolled(t)
	socket := "unix:" + filepath.Join(t.TempDir(), "link")
	c.Links = []Link{{socket, deviceapi.LinkWire}}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashEnv+"="+strings.Join([]string{c.StateDir, c.URL, c.CAFile, socket}, "\n"))
	child.Stderr = os.Stderr
	must(t, child.Start())
	t.Cleanup(func() { _ = child.Process.Kill() })
	eventually(t, "the relay listens", func() bool {
		conn, err := link.Dial(t.Context(), socket)
		return err == nil && conn.Close() == nil
	})
	g := &rig{fake: f, dir: c.StateDir, relay: &Relay{}}
	p := g.phoneAt(t, socket, 100)
	p.challenge(protocol.Approve)
	must(t, p.conn.Send(p.m3))
	if answer, err := p.conn.Receive(); err == nil {
		t.Fatalf("the relay was not killed: it answers %x", answer)
	}
	_ = child.Wait()
	if code := child.ProcessState.ExitCode(); code != -1 {
		t.Fatalf("the relay ended with %d, want a signal", code)
	}
	if len(g.hookLog()) != 1 || strings.Join(g.steps(t), " ") != "started" {
		t.Fatalf("after the crash: %d acts, journal %v; want 1, started", len(g.hookLog()), g.steps(t))
	}

	again := start(t, f, c)
	if got := strings.Join(again.steps(t), " "); got != "started" && got != "started unconfirmed" {
		t.Errorf("journal %q", got)
	}
	eventually(t, "the unconfirmed act is reported", func() bool {
		s, err := ReadStatus(c.StateDir)
		return err == nil && s.Last != nil && s.Last.Result == "unconfirmed"
	})
	p.conn = again.dial(t)
	if m2 := ask1(t, p.conn, p.m1); m2[0] != 0x21 {
		t.Errorf("M1 after the restart: %x", m2)
	}
	// The same transaction under a new challenge, as a replaying appliance might send it.
	next := again.phone(t, 100)
	next.challenge(protocol.Approve)
	f.set(func() {
		for _, o := range f.opened {
			o.tx = transactionOf(t, c.StateDir)
		}
	})
	next.finish(next.conn)
	if got := len(g.hookLog()); got != 1 {
		t.Errorf("%d acts, want the 1 before the crash", got)
	}
	if len(f.outcomes) != 0 {
		t.Errorf("an unconfirmed act is reported as %v", f.outcomes)
	}
}

// transactionOf returns the only transaction of a journal.
func transactionOf(t *testing.T, dir string) protocol.TransactionID {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "journal"))
	must(t, err)
	line, _, _ := strings.Cut(string(raw), "\n")
	var r struct{ Transaction string }
	must(t, json.Unmarshal([]byte(line), &r))
	id, err := protocol.ParseTransactionID(r.Transaction)
	must(t, err)
	return id
}

// TestFinalAnswers: the relay gives an outcome up only if the appliance refuses it for good.
func TestFinalAnswers(t *testing.T) {
	r := &Relay{log: hclog.NewNullLogger()}
	for status, want := range map[int]bool{
		399: false, 400: true, 401: false, 403: false, 404: true, 408: false, 409: true, 429: false, 499: true, 500: false, 503: false,
	} {
		if got := r.isFinal(journal.Outcome{}, fmt.Errorf("reporting: %w", &uplink.StatusError{Status: status})); got != want {
			t.Errorf("%d is final: %t", status, got)
		}
	}
	if r.isFinal(journal.Outcome{}, errors.New("no route")) {
		t.Error("an appliance that cannot be reached has refused")
	}
}
