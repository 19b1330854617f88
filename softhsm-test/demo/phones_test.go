package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
)

// The exit codes of countersign-client that scenes look for.
const (
	approved     = 0
	failed       = 1
	denied       = 3
	notAuthentic = 4
	unknown      = 75 // the outcome is
)

// answer is the output of countersign-client -o json, and its standard error.
type answer struct {
	Result    string        `json:"result"`
	Code      protocol.Code `json:"code"`
	Serial    string        `json:"serial"`
	Amount    string        `json:"amount"`
	Level     uint8         `json:"level"`
	RetryS    int           `json:"retry_s"`
	TriesLeft *uint64       `json:"tries_left"`

	told string // standard error
}

// person runs countersign-client, and types these passwords when it asks.
type person struct {
	name  string
	types []string
}

// client runs countersign-client for a phone, which must end with an exit code. It
// is shown as it would be typed.
func (s *stage) client(ctx context.Context, name string, want int, args ...string) answer {
	return s.by(ctx, person{name: name}, want, args...)
}

func (s *stage) by(ctx context.Context, p person, want int, args ...string) answer {
	call := harness.Call{Program: "countersign-client", Args: append([]string{"--state", filepath.Join(s.dir, p.name), "-o", "json"}, args...)}
	if p.types != nil {
		call.Args = append(call.Args, "--password-fd", "0")
		call.Stdin = strings.Join(p.types, "\n") + "\n"
	}
	r := harness.Must(s.Config.Bin.Run(ctx, call))
	a := answer{told: r.Stderr}
	if r.Stdout != "" {
		harness.Do(json.Unmarshal([]byte(r.Stdout), &a))
	}
	s.Say("   %-5s $ countersign-client %s", p.name, s.short(args))
	s.Say("           %sexit %d%s", typed(p.types), r.Code, outcome(a, r.Stderr))
	s.demand(r.Code == want, "exit code %d, wanted %d: %s", r.Code, want, strings.TrimSpace(r.Stderr))
	return a
}

// typed is what a bystander sees of passwords.
func typed(passwords []string) string {
	var b strings.Builder
	for range passwords {
		b.WriteString("password: •••••• ")
	}
	return b.String()
}

// short leaves out what only a machine wants to read.
func (s *stage) short(args []string) string {
	var out []string
	for _, a := range args {
		switch {
		case strings.HasPrefix(a, "OA1-"):
			a = a[:8] + "…"
		case a == s.wire.Link():
			a = "tcp:relay"
		case a == s.URL:
			a = "https://appliance"
		case s.machines[a] != "":
			a = "tcp:" + s.machines[a]
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

func outcome(a answer, stderr string) string {
	if a.Result != "" {
		text := ": " + a.Result
		if a.Code != 0 {
			text += fmt.Sprintf(", code %d (%s)", uint8(a.Code), a.Code)
		}
		if a.TriesLeft != nil && a.Code == protocol.CodePassword {
			text += fmt.Sprintf(", %d left", *a.TriesLeft)
		}
		if a.RetryS != 0 {
			text += fmt.Sprintf(", try again in %d s", a.RetryS)
		}
		if a.Amount != "" {
			text += ", " + a.Amount
		}
		return text
	}
	for line := range strings.Lines(stderr) {
		if text, ok := strings.CutPrefix(line, "error: "); ok {
			return ": " + strings.TrimSpace(text)
		}
	}
	return ""
}

// authorize asks at the relay for a service, and says yes.
func (s *stage) authorize(ctx context.Context, name string, want int, args ...string) answer {
	return s.client(ctx, name, want, append([]string{"authorize", "--link", s.wire.Link(), "--yes", "--service"}, args...)...)
}

// enrol invites a phone and enrols it, without a password.
func (s *stage) enrol(ctx context.Context, name string) (code string) {
	code = harness.Must(s.Invite(ctx, "client", name))
	s.client(ctx, name, approved, "enrol", "--url", s.URL, code)
	return code
}

// enrolWith invites a phone with a role and enrols it with its password; more are
// flags of enrol.
func (s *stage) enrolWith(ctx context.Context, name string, roles []string, more ...string) {
	code := harness.Must(s.Invite(ctx, "client", name, roles...))
	if len(roles) != 0 {
		s.Say("   admin $ countersignctl client invite %s --role %s", name, strings.Join(roles, " --role "))
	}
	s.by(ctx, person{name, []string{right(name)}}, approved, append(append([]string{"enrol", "--url", s.URL}, more...), code)...)
}

// right is a phone's password.
func right(name string) string { return "correct horse of " + name }

const wrong = "battery staple"

// ctl runs countersignctl, which must succeed.
func (s *stage) ctl(ctx context.Context, args ...string) {
	r := harness.Must(s.Ctl(ctx, args...))
	s.Say("   admin $ countersignctl %s", strings.Join(args, " "))
	s.demand(r.Code == 0, "exit code %d: %s", r.Code, strings.TrimSpace(r.Stderr))
}
