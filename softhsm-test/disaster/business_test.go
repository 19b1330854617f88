package disaster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"countersign/softhsm-test/harness"
)

// person is a phone.
type person struct {
	name  string
	extra []string // of enrol
	roles []string
}

// people are enrolled before the disaster, and never again.
var people = []person{
	{name: "alice"},
	{name: "bob", extra: []string{"--password-file"}},
	{name: "dora", extra: []string{"--uv", "--password-file"}},
	{name: "frank", extra: []string{"--uv", "--password-file"}, roles: []string{"approver"}},
	{name: "erin", extra: []string{"--uv", "--password-file"}},
	{name: "mallory"},
	{name: "otto"},
}

// business splits the backup key, holds the ceremony, opens the doors, and has
// everybody authorize once.
func (s *stage) business(ctx context.Context) {
	s.split(ctx)
	r := s.countersignd(ctx, "init")
	if r.Code != 0 {
		harness.Fail("countersignd init: exit code %d: %s", r.Code, r.Stderr)
	}
	s.serve(ctx)
	s.openDoors(ctx)
	for _, p := range people {
		s.enrol(ctx, p)
	}
	for _, step := range [][]string{
		{"key", "rotate", "kem"},
		{"key", "activate", "kem"},
		{"key", "rotate", "root"},
		{"key", "activate", "root", "--yes"},
		{"key", "backup", "--out", s.path("keys.ruled-out")},
		{"store", "backup", "--out", s.path("store.ruled-out")},
		{"key", "rotate", "decision", "--compromised"},
		{"key", "activate", "decision"},
	} {
		s.MustCtl(ctx, step...)
	}
	s.noteRoots(ctx)
	s.everybody(ctx)
}

// noteRoots is the custodians' paper.
func (s *stage) noteRoots(ctx context.Context) {
	for _, ref := range []string{"root@1", "root@2"} {
		r := s.MustCtl(ctx, "key", "show", ref, "-o", "json")
		var key struct {
			PublicKey string `json:"public_key"`
		}
		harness.Do(json.Unmarshal([]byte(r.Stdout), &key))
		s.roots = append(s.roots, key.PublicKey)
	}
}

// split makes the backup key. Debian's age opens the share of a custodian with a key.
func (s *stage) split(ctx context.Context) {
	args := []string{"key", "custodians", "init", "--threshold", "2", "--out", s.path("custody")}
	if !testing.Short() {
		args = append(args, s.third()...)
	}
	for _, r := range s.custodians {
		args = append(args, "--recipient", r)
	}
	for what, threshold := range map[string]string{"one custodian alone": "1", "four of three": "4"} {
		r := harness.Must(s.Ctl(ctx, append(append([]string{}, args...), "--threshold", threshold)...))
		s.Check(r.Code == 2, "%s: exit code %d, want 2: %s", what, r.Code, r.Stderr)
	}
	s.MustCtl(ctx, args...)
	r := harness.Must(s.Ctl(ctx, args...))
	s.Check(r.Code == 1, "a second split into the same directory: exit code %d, want 1", r.Code)
	text := s.tool(ctx, "age", "-d", "-i", s.path("anna.key"), s.share(1))
	harness.Do(os.WriteFile(s.path("share-1.txt"), []byte(text), 0o600))
	for _, c := range [][]string{
		{"--share", s.share(1), "--identity", s.path("anna.key")},
		{"--share", s.share(2), "--identity", s.path("ben.key")},
		append([]string{"--share", s.share(3)}, s.third()...),
		{"--share", s.path("share-1.txt")},
	} {
		r := harness.Must(s.Ctl(ctx, append([]string{"key", "custodians", "check", "--backup-key", s.path("custody", "backup.pub")}, c...)...))
		s.Check(r.Code == 0, "custodians check %v: exit code %d: %s", c, r.Code, r.Stderr)
	}
	r = harness.Must(s.Ctl(ctx, "key", "custodians", "check", "--share", s.share(1), "--identity", s.path("ben.key")))
	s.Check(r.Code == 77, "the share of another: exit code %d, want 77", r.Code)
}

// third opens the share of the third custodian, who has a passphrase, or a key under -short:
// stretching a passphrase takes seconds, and backup.txtar does it too.
func (s *stage) third() []string {
	if testing.Short() {
		return []string{"--identity", s.path("carl.key")}
	}
	return []string{"--passphrase-file", s.path("passphrase")}
}

func (s *stage) share(n int) string { return s.path("custody", fmt.Sprintf("share-%d.age", n)) }

// openDoors enrols the devices. Each has its own copy of the authorities.
func (s *stage) openDoors(ctx context.Context) {
	harness.Do(os.WriteFile(s.CA, harness.Must(os.ReadFile(s.path("state", "ca.pem"))), 0o600))
	s.door = harness.Must(s.OpenMachine(ctx, harness.MachineConfig{Dir: s.dir, Name: "door", Keys: "accept = [100, 200, 300]"}))
	s.gate = harness.Must(s.OpenMachine(ctx, harness.MachineConfig{Dir: s.dir, Name: "gate", Keys: "accept = [100, 200, 300]\nstrict = true"}))
}

func (s *stage) enrol(ctx context.Context, p person) {
	code := harness.Must(s.Invite(ctx, "client", p.name, p.roles...))
	args := append([]string{"enrol", "--url", s.URL}, p.extra...)
	if len(p.extra) > 0 {
		args = append(args, s.path("password"))
	}
	if r := s.phone(ctx, p.name, append(args, code)...); r.Code != 0 {
		harness.Fail("enrolling %s: exit code %d: %s", p.name, r.Code, r.Stderr)
	}
}

// phone runs countersign-client.
func (s *stage) phone(ctx context.Context, name string, args ...string) harness.Result {
	return s.Phone(ctx, s.path("phone-"+name), args...)
}

// authorization is one case: who, at which level, and how it must end.
type authorization struct {
	name  string
	level int
	want  int // exit code
}

// authorize has a phone authorize at a device.
func (s *stage) authorize(ctx context.Context, at *harness.Machine, a authorization) {
	args := []string{"authorize", "--link", at.Link, "--yes", "--receipt", "-o", "json"}
	switch a.level {
	case 1:
		args = append(args, "--service", "100")
	case 2:
		args = append(args, "--service", "200", "--amount", "60.00 EUR", "--password-file", s.path("password"))
	case 3:
		args = append(args, "--service", "300", "--password-file", s.path("password"))
	case 4:
		args = append(args, "--service", "200", "--amount", "10000.00 EUR", "--text", "a used car", "--password-file", s.path("password"))
	}
	r := s.phone(ctx, a.name, args...)
	s.Check(r.Code == a.want, "%s at level %d: exit code %d, want %d: %s %s", a.name, a.level, r.Code, a.want, r.Stdout, r.Stderr)
	if r.Code == 0 {
		s.approved++
	}
	var told struct {
		Level int `json:"level"`
	}
	if r.Code == 0 && a.want == 0 {
		err := json.Unmarshal([]byte(r.Stdout), &told)
		s.Check(err == nil && told.Level == a.level, "%s was approved at level %d, want %d: %v", a.name, told.Level, a.level, err)
	}
}

// Exit codes of countersign-client.
const (
	denied = 3
	later  = 75
)

// everybody authorizes at levels 1 to 4, at both devices, and verifies the receipts.
func (s *stage) everybody(ctx context.Context) {
	for _, at := range []*harness.Machine{s.door, s.gate} {
		for _, a := range []authorization{{"alice", 1, 0}, {"bob", 2, 0}, {"dora", 3, 0}, {"dora", 4, later}} {
			s.authorize(ctx, at, a)
		}
		r := s.phone(ctx, "frank", "approve", "--link", at.Link, "--yes", "--password-file", s.path("password"))
		s.Check(r.Code == 0, "frank approves: exit code %d: %s %s", r.Code, r.Stdout, r.Stderr)
		s.approved++
		r = s.phone(ctx, "dora", "status", "--last", "--link", at.Link, "-o", "json")
		s.Check(r.Code == 0, "what became of it: exit code %d: %s", r.Code, r.Stderr)
	}
	r := s.phone(ctx, "bob", "authorize", "--link", s.door.Link, "--service", "100", "--level", "2", "--yes", "--password-file", s.path("wrong"))
	s.Check(r.Code == later, "a wrong password: exit code %d, want %d", r.Code, later)
	r = s.phone(ctx, "bob", "resume", "--link", s.door.Link, "--yes", "--password-file", s.path("password"))
	s.Check(r.Code == 0, "then the right one: exit code %d: %s", r.Code, r.Stderr)
	s.approved++
	for _, name := range []string{"alice", "bob", "dora"} {
		r := s.phone(ctx, name, "receipts", "verify")
		s.Check(r.Code == 0, "receipts of %s: exit code %d: %s", name, r.Code, r.Stderr)
	}
	s.acted()
}

// acted: the devices have acted once for each approval.
func (s *stage) acted() {
	n := 0
	for _, m := range []*harness.Machine{s.door, s.gate} {
		acts := harness.Must(m.Acts())
		n += len(acts)
	}
	s.Check(n == s.approved, "%d acts for %d approvals", n, s.approved)
}
