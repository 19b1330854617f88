package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"countersign/protocol"
	"countersign/softhsm-test/rig"
)

// The exit codes of countersign-client that scenes look for.
const (
	approved     = 0
	failed       = 1
	denied       = 3
	notAuthentic = 4
	unknown      = 75 // the outcome is
)

// answer is what countersign-client prints with -o json.
type answer struct {
	Result string        `json:"result"`
	Code   protocol.Code `json:"code"`
	Amount string        `json:"amount"`
}

// client runs countersign-client for a phone, which must end with an exit code. It
// is shown as it would be typed.
func (s *stage) client(ctx context.Context, name string, want int, args ...string) (answer, error) {
	full := append([]string{"--state", filepath.Join(s.dir, name), "-o", "json"}, args...)
	r, err := s.Config.Bin.Run(ctx, rig.Call{Program: "countersign-client", Args: full})
	if err != nil {
		return answer{}, err
	}
	var a answer
	if r.Stdout != "" {
		if err := json.Unmarshal([]byte(r.Stdout), &a); err != nil {
			return a, fmt.Errorf("countersign-client printed %q: %w", r.Stdout, err)
		}
	}
	s.say("   %-5s $ countersign-client %s", name, s.short(args))
	s.say("           exit %d%s", r.Code, outcome(a, r.Stderr))
	s.demand(r.Code == want, "exit code %d, wanted %d: %s", r.Code, want, strings.TrimSpace(r.Stderr))
	return a, nil
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
		case strings.HasPrefix(a, "tcp:"):
			a = "tcp:kiosk"
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
func (s *stage) authorize(ctx context.Context, name string, want int, args ...string) (answer, error) {
	return s.client(ctx, name, want, append([]string{"authorize", "--link", s.wire.Link(), "--yes", "--service"}, args...)...)
}

// enrol invites a phone and enrols it.
func (s *stage) enrol(ctx context.Context, name string) (code string, err error) {
	if code, err = s.Invite(ctx, "client", name); err != nil {
		return "", err
	}
	_, err = s.client(ctx, name, approved, "enrol", "--url", s.URL, code)
	return code, err
}

// ctl runs countersignctl, which must succeed.
func (s *stage) ctl(ctx context.Context, args ...string) error {
	r, err := s.Ctl(ctx, args...)
	if err != nil {
		return err
	}
	s.say("   admin $ countersignctl %s", strings.Join(args, " "))
	s.demand(r.Code == 0, "exit code %d: %s", r.Code, strings.TrimSpace(r.Stderr))
	return nil
}
