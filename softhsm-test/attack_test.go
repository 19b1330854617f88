package softhsmtest

import (
	"path/filepath"
	"testing"

	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

// TestAttackedLink runs countersign-client over a link on which one message is
// altered, swallowed or cut off, and then lets it find out what became of it.
func TestAttackedLink(t *testing.T) {
	b := newBench(t)
	proxy := must[*link.Proxy](t)(link.NewProxy(b.Link))
	t.Cleanup(func() { _ = proxy.Close() })
	state := filepath.Join(t.TempDir(), "alice")
	client := func(args ...string) int {
		r, err := programs.Run(t.Context(), harness.Call{Program: "countersign-client", Args: append([]string{"--state", state}, args...)})
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
		rule   link.Rule
		exit   int
		resume int // exit code of resume; 5: there is nothing pending
		leaves harness.Tally
	}{
		{"M1 altered", link.Rule{Kind: message.KindM1, Bit: -1}, 1, 5, nothing},
		{"M1 of version 2", link.Rule{Kind: message.KindM1, Bit: 6}, 1, 5, nothing},
		{"M1 cut", link.Rule{Kind: message.KindM1, Action: link.Cut}, 69, 5, nothing},
		{"M2 altered", link.Rule{Kind: message.KindM2, Bit: -1}, 4, 5, nothing},
		{"challenge altered", link.Rule{Kind: message.KindM2, Bit: 8}, 4, 5, nothing},
		{"M2 turned into another message", link.Rule{Kind: message.KindM2, Bit: 1}, 4, 5, nothing},
		{"M2 cut", link.Rule{Kind: message.KindM2, Action: link.Cut}, 69, 5, nothing},
		{"M3 altered", link.Rule{Kind: message.KindM3, Bit: -1}, 75, 0, acted},
		{"attempt altered", link.Rule{Kind: message.KindM3, Bit: 15}, 75, 0, acted},
		{"M3 cut", link.Rule{Kind: message.KindM3, Action: link.Cut}, 75, 0, acted},
		{"M4 altered", link.Rule{Kind: message.KindM4, Bit: -1}, 75, 0, acted},
		{"r altered", link.Rule{Kind: message.KindM4, Bit: 16}, 75, 0, acted},
		{"M4 cut", link.Rule{Kind: message.KindM4, Action: link.Cut}, 75, 0, acted},
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
