package softhsmtest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"countersign/protocol/message"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/tamper"
)

// TestAttackedLink runs countersign-client over a link on which one message is
// altered, swallowed or cut off, and then lets it find out what became of it.
func TestAttackedLink(t *testing.T) {
	b := newBench(t)
	proxy := must[*tamper.Proxy](t)(tamper.New(b.Link))
	t.Cleanup(func() { _ = proxy.Close() })
	state := filepath.Join(t.TempDir(), "alice")
	client := func(args ...string) int {
		r, err := programs.Run(t.Context(), rig.Call{Program: "countersign-client", Args: append([]string{"--state", state}, args...)})
		if err != nil {
			t.Fatal(err)
		}
		return r.Code
	}
	code := must[string](t)(b.Invite(t.Context(), "client", "alice"))
	if got := client("enrol", "--url", b.URL, code); got != 0 {
		t.Fatalf("enrol: exit code %d", got)
	}
	for _, c := range []struct {
		name   string
		rule   tamper.Rule
		exit   int
		resume int // exit code of resume; 5: there is nothing pending
		leaves rig.Tally
	}{
		{"M1 altered", tamper.Rule{Kind: message.KindM1, Bit: -1}, 1, 5, nothing},
		{"M1 of version 2", tamper.Rule{Kind: message.KindM1, Bit: 6}, 1, 5, nothing},
		{"M1 cut", tamper.Rule{Kind: message.KindM1, Action: tamper.Cut}, 69, 5, nothing},
		{"M2 altered", tamper.Rule{Kind: message.KindM2, Bit: -1}, 4, 5, nothing},
		{"challenge altered", tamper.Rule{Kind: message.KindM2, Bit: 8}, 4, 5, nothing},
		{"M2 turned into another message", tamper.Rule{Kind: message.KindM2, Bit: 1}, 4, 5, nothing},
		{"M2 cut", tamper.Rule{Kind: message.KindM2, Action: tamper.Cut}, 69, 5, nothing},
		{"M3 altered", tamper.Rule{Kind: message.KindM3, Bit: -1}, 75, 0, acted},
		{"attempt altered", tamper.Rule{Kind: message.KindM3, Bit: 15}, 75, 0, acted},
		{"M3 cut", tamper.Rule{Kind: message.KindM3, Action: tamper.Cut}, 75, 0, acted},
		{"M4 altered", tamper.Rule{Kind: message.KindM4, Bit: -1}, 75, 0, acted},
		{"r altered", tamper.Rule{Kind: message.KindM4, Bit: 16}, 75, 0, acted},
		{"M4 cut", tamper.Rule{Kind: message.KindM4, Action: tamper.Cut}, 75, 0, acted},
	} {
		t.Run(c.name, func(t *testing.T) {
			proxy.Reset()
			proxy.Next(c.rule)
			b.changes(c.leaves, func() {
				if got := client("authorize", "--link", proxy.Link(), "--service", "100", "--yes"); got != c.exit {
					t.Errorf("exit code %d, want %d", got, c.exit)
				}
				if got := client("resume", "--link", proxy.Link()); got != c.resume {
					t.Errorf("resume: exit code %d, want %d", got, c.resume)
				}
			})
		})
	}
	b.changes(acted, func() {
		if got := client("authorize", "--link", proxy.Link(), "--service", "100", "--yes"); got != 0 {
			t.Errorf("undisturbed: exit code %d", got)
		}
	})
}

// TestDemo holds the demo to its word, and that it can fail.
func TestDemo(t *testing.T) {
	demo := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", demo, "countersign/softhsm-test/demo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range []struct {
		name string
		exit int
		last string
	}{
		{"", 0, "demo: 19 scenes, 19 as expected"},
		{"replay", 1, "demo: 19 scenes, 18 as expected"},
		{"guard", 1, "demo: 19 scenes, 18 as expected"},
		{"nonsense", 2, ""},
	} {
		t.Run("BREAK="+c.name, func(t *testing.T) {
			t.Parallel()
			bin := rig.Bin(filepath.Dir(demo))
			r := must[rig.Result](t)(bin.Run(t.Context(), rig.Call{
				Program: "demo", Env: []string{"BREAK=" + c.name, "COUNTERSIGN_BIN=" + string(programs)},
			}))
			lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
			if last := lines[len(lines)-1]; r.Code != c.exit || last != c.last {
				t.Errorf("exit code %d, last line %q: want %d, %q\n%s%s", r.Code, last, c.exit, c.last, r.Stdout, r.Stderr)
			}
		})
	}
}
