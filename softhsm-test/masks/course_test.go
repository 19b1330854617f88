package masks

import (
	"cmp"
	"context"
	"encoding/json"
	"os"
	"strings"

	"countersign/softhsm-test/harness"
)

// Exit codes.
const (
	again       = 75 // of countersign-client after a wrong password
	failed      = 1  // of countersignd on a module that cannot make a key
	unavailable = 69 // of countersignd on a module without ECDH or HMAC
)

// keys are rotated in this order.
var keys = []string{"decision", "kem", "client-ca", "enrol", "ca", "mac", "wrap", "root"}

// run takes the course.
func (s *stage) run(ctx context.Context) {
	if !s.founded(ctx) {
		return
	}
	s.serve(ctx)
	status := s.MustCtl(ctx, "hsm", "status").Stdout
	s.Check(strings.Contains(status, s.way), "hsm status does not name %q: %s", s.way, status)
	s.enrol(ctx)
	s.authorizeAll(ctx, "at first")
	s.strike(ctx)
	s.rotateAll(ctx)
	s.authorizeAll(ctx, "after the rotations")
	s.restart(ctx)
	s.authorizeAll(ctx, "after a restart")
	s.backup(ctx)
}

// founded runs init, with a backup key if the mask allows sealed copies, and reports whether it worked.
func (s *stage) founded(ctx context.Context) bool {
	if s.refusal != "" {
		s.configure("")
		s.refuses(ctx, cmp.Or(s.code, unavailable), s.refusal)
		return false
	}
	s.split(ctx)
	s.configure(backupTOML)
	if s.lacking != "" {
		s.refuses(ctx, failed, s.lacking)
		s.emptyToken(ctx)
		s.configure("")
	}
	r := s.countersignd(ctx, "init")
	s.Check(r.Code == 0, "init: exit code %d: %s", r.Code, r.Stderr)
	return r.Code == 0
}

// refuses: init says what the module lacks, does not blame the caller, and leaves no key.
func (s *stage) refuses(ctx context.Context, code int, lacking string) {
	r := s.countersignd(ctx, "init")
	s.Check(r.Code == code, "init: exit code %d, want %d: %s", r.Code, code, r.Stderr)
	s.Check(strings.Contains(r.Stderr, lacking), "init does not name %s: %s", lacking, r.Stderr)
	s.Check(!strings.Contains(r.Stderr, "bad input"), "init blames the caller: %s", r.Stderr)
	left := harness.Objects(ctx, pin, s.unmasked())
	s.Check(len(left) == 0, "init leaves %v on the token", left)
}

// enrol enrols the device, and a phone with a password and a UV key.
func (s *stage) enrol(ctx context.Context) {
	s.door = harness.Must(s.OpenMachine(ctx, harness.MachineConfig{Dir: s.dir, Name: "door", Keys: "accept = [100, 200, 300]"}))
	code := harness.Must(s.Invite(ctx, "client", "dora"))
	if s.unkept != "" {
		s.enrolWithout(ctx, code)
		return
	}
	r := s.phone(ctx, "enrol", "--url", s.URL, "--uv", "--password-file", s.path("right"), code)
	s.Check(r.Code == 0, "enrol with a password: exit code %d: %s", r.Code, r.Stderr)
}

// enrolWithout enrols a phone whose password the module cannot keep: an enrolment with one is refused, and the log names what
// the module lacks.
func (s *stage) enrolWithout(ctx context.Context, code string) {
	r := s.phone(ctx, "enrol", "--url", s.URL, "--uv", "--password-file", s.path("right"), code)
	s.Check(r.Code != 0, "enrol with a password that the module cannot keep works: %s", r.Stdout)
	log := s.Log()
	s.Check(strings.Contains(log, s.unkept), "the log does not name %s: %s", s.unkept, log)
	r = s.phone(ctx, "enrol", "--url", s.URL, "--uv", code)
	s.Check(r.Code == 0, "enrol without a password: exit code %d: %s", r.Code, r.Stderr)
}

// authorization is a command of the phone with its exit code.
type authorization struct {
	name string
	want int
	args []string
}

// authorizeAll authorizes at levels 1 to 3, once with a wrong password, or at level 1 only if the module keeps no password.
func (s *stage) authorizeAll(ctx context.Context, when string) {
	before := len(harness.Must(s.door.Acts()))
	authorizations, approvals := []authorization{
		{"level 1", 0, []string{"authorize", "--service", "100"}},
		{"level 2, wrong", again, []string{"authorize", "--service", "100", "--level", "2", "--password-file", s.path("wrong")}},
		{"level 2, right", 0, []string{"resume", "--password-file", s.path("right")}},
		{"level 3", 0, []string{"authorize", "--service", "300", "--password-file", s.path("right")}},
	}, 3
	if s.unkept != "" {
		authorizations, approvals = authorizations[:1], 1
	}
	for _, a := range authorizations {
		r := s.phone(ctx, append(a.args, "--link", s.door.Link, "--yes")...)
		s.Check(r.Code == a.want, "%s %s: exit code %d, want %d: %s %s", a.name, when, r.Code, a.want, r.Stdout, r.Stderr)
	}
	acts := len(harness.Must(s.door.Acts())) - before
	s.Check(acts == approvals, "%d acts for %d approvals %s", acts, approvals, when)
}

// strike has the fault happen under the next authorizations, which succeed all the same.
func (s *stage) strike(ctx context.Context) {
	if s.fault == "" {
		return
	}
	harness.Do(s.Set(s.fault))
	harness.Do(harness.Until(ctx, s.fault, func() (bool, error) {
		r := s.phone(ctx, "authorize", "--service", "100", "--link", s.door.Link, "--yes")
		s.Check(r.Code == 0, "level 1 when %s: exit code %d: %s", s.fault, r.Code, r.Stderr)
		struck, err := s.Injected()
		return len(struck) > 0, err
	}))
	harness.Do(s.Clear())
}

// rotateAll rotates every key, and gives up the first version of wrap: what it wrapped is wrapped anew.
func (s *stage) rotateAll(ctx context.Context) {
	for _, name := range keys {
		for _, args := range [][]string{{"key", "rotate", name}, {"key", "activate", name, "--yes"}} {
			r := harness.Must(s.Ctl(ctx, args...))
			s.Check(r.Code == 0, "%s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
		}
	}
	harness.Do(harness.Until(ctx, "verifiers wrapped anew", func() (bool, error) {
		var plan struct {
			Records struct {
				Total, Left int
				Running     bool
			} `json:"records"`
		}
		err := json.Unmarshal([]byte(s.MustCtl(ctx, "key", "plan", "-o", "json").Stdout), &plan)
		return (plan.Records.Total > 0 || s.unkept != "") && plan.Records.Left == 0 && !plan.Records.Running, err
	}))
	r := harness.Must(s.Ctl(ctx, "key", "retire", "wrap@1", "--yes"))
	s.Check(r.Code == 0, "retiring wrap@1: exit code %d: %s", r.Code, r.Stderr)
}

// restart stops the daemon and starts it again.
func (s *stage) restart(ctx context.Context) {
	harness.Must(s.Stop())
	s.serve(ctx)
}

// backup copies the keys, or says why it cannot.
func (s *stage) backup(ctx context.Context) {
	r := harness.Must(s.Ctl(ctx, "key", "backup", "--out", s.path("keys.backup")))
	if s.lacking != "" {
		s.Check(r.Code == failed, "key backup without sealed copies: exit code %d, want %d: %s", r.Code, failed, r.Stderr)
		return
	}
	info, err := os.Stat(s.path("keys.backup"))
	s.Check(r.Code == 0 && err == nil && info.Size() > 0, "key backup: exit code %d: %s", r.Code, r.Stderr)
}
