package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

// stage is the appliance with its relay, the attacker between it and the phones,
// and the phones.
type stage struct {
	*harness.Report
	*harness.Appliance
	dir   string
	wire  *link.Proxy
	wrong []string // of the scene that plays

	machines map[string]string // names of further devices, by link
	franks   string            // serial of frank's payment, which waits
}

func open(r *harness.Report) *stage {
	s := &stage{Report: r, dir: harness.TempDir(r.T()), machines: map[string]string{}}
	s.Appliance = harness.Must(harness.Start(r.Context(), harness.Config{Bin: harness.Must(harness.Built()), Dir: filepath.Join(s.dir, "dev")}))
	s.wire = harness.Must(link.NewProxy(s.Link))
	s.Say("Countersign: a phone without a network authorizes with its signature, and an appliance")
	s.Say("whose keys never leave a PKCS#11 token decides. Running: countersignd, 2 hsm-worker on a")
	s.Say("SoftHSM token, relayd as the door and the till; between phone and relay, an attacker.")
	return s
}

// close stops everything gently.
func (s *stage) close() {
	harness.Do(s.wire.Close())
	took := harness.Must(s.Stop())
	s.Say("")
	s.Say("stopped by SIGTERM in %v", took.Round(1e6))
}

// scene is one event, and the counts that it must add.
type scene struct {
	title string
	story []string
	play  func(*stage, context.Context)
	want  harness.Tally // more than before
}

// play plays a scene: one check.
func (s *stage) play(ctx context.Context, number int, sc scene) {
	s.Say("")
	s.Say("%d. %s", number, sc.title)
	for _, line := range sc.story {
		s.Say("   %s", line)
	}
	s.wrong = nil
	s.wire.Reset()
	if err := harness.Try(func() { s.counted(ctx, sc) }); err != nil {
		s.blame("%v", err)
	}
	if s.Check(len(s.wrong) == 0, "not as expected: %s", strings.Join(s.wrong, "; ")); len(s.wrong) == 0 {
		s.Say("   as expected: %s", words(sc.want))
	}
}

// counted plays a scene between two counts.
func (s *stage) counted(ctx context.Context, sc scene) {
	before := harness.Must(s.Tally(ctx))
	sc.play(s, ctx)
	after := harness.Must(s.Tally(ctx))
	if want := before.Plus(sc.want); after != want {
		s.blame("counted %s; wanted %s", words(minus(after, before)), words(sc.want))
	}
}

func minus(a, b harness.Tally) harness.Tally {
	return harness.Tally{
		Clients: a.Clients - b.Clients, Devices: a.Devices - b.Devices, Decisions: a.Decisions - b.Decisions,
		Audited: a.Audited - b.Audited, Refused: a.Refused - b.Refused, Acts: a.Acts - b.Acts,
	}
}

func words(t harness.Tally) string {
	var parts []string
	for _, p := range []struct {
		n    uint64
		what string
	}{{t.Clients, "phones enrolled"}, {t.Devices, "devices enrolled"}, {t.Decisions, "decisions stored"}, {t.Audited, "decisions audited"}, {t.Refused, "attempts audited"}, {t.Acts, "acts in the hook log"}} {
		if p.n != 0 {
			parts = append(parts, fmt.Sprintf("%s: %d", p.what, int64(p.n)))
		}
	}
	if parts == nil {
		return "nothing stored, nothing done"
	}
	return strings.Join(parts, ", ")
}

// blame notes a difference from the expected course.
func (s *stage) blame(format string, args ...any) {
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
}

// demand notes it unless ok.
func (s *stage) demand(ok bool, format string, args ...any) {
	if !ok {
		s.blame(format, args...)
	}
}

// The exit codes of countersign-client that scenes look for.
const (
	approved     = 0
	failed       = 1
	denied       = 3
	codeRefused  = 77
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
	Performed *bool         `json:"performed"`

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
		case strings.HasPrefix(a, s.dir):
			a = filepath.Base(a)
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
	s.client(ctx, name, approved, "enrol", "--url", s.URL, "--code-file", s.codeFile(name, code))
	return code
}

// codeFile keeps an activation code as a user does, off the command line.
func (s *stage) codeFile(name, code string) string {
	path := filepath.Join(s.dir, name+".code")
	harness.Do(os.WriteFile(path, []byte(code+"\n"), 0o600))
	return path
}

// enrolWith invites a phone with a role and enrols it with its password; more are
// flags of enrol.
func (s *stage) enrolWith(ctx context.Context, name string, roles []string, more ...string) {
	code := harness.Must(s.Invite(ctx, "client", name, roles...))
	if len(roles) != 0 {
		s.Say("   admin $ countersignctl client invite %s --role %s", name, strings.Join(roles, " --role "))
	}
	s.by(ctx, person{name, []string{right(name)}}, approved, append([]string{"enrol", "--url", s.URL, "--code-file", s.codeFile(name, code)}, more...)...)
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

// openMachine enrols a machine and starts it.
func (s *stage) openMachine(ctx context.Context, c harness.MachineConfig) *harness.Machine {
	c.Dir = s.dir
	m := harness.Must(s.OpenMachine(ctx, c))
	s.machines[m.Link] = c.Name
	return m
}

// stop stops a machine.
func stop(m *harness.Machine) { harness.Must(m.Stop()) }
