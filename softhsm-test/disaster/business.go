package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"countersign/softhsm-test/rig"
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
func (s *stage) business(ctx context.Context) error {
	if err := s.split(ctx); err != nil {
		return err
	}
	r, err := s.countersignd(ctx, "init")
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("countersignd init: exit code %d: %s", r.Code, r.Stderr)
	}
	if err := s.serve(ctx); err != nil {
		return err
	}
	if err := s.openDoors(ctx); err != nil {
		return err
	}
	for _, p := range people {
		if err := s.enrol(ctx, p); err != nil {
			return err
		}
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
		if _, err := s.must(ctx, step...); err != nil {
			return err
		}
	}
	if err := s.noteRoots(ctx); err != nil {
		return err
	}
	return s.everybody(ctx)
}

// noteRoots is the custodians' paper.
func (s *stage) noteRoots(ctx context.Context) error {
	for _, ref := range []string{"root@1", "root@2"} {
		r, err := s.must(ctx, "key", "show", ref, "-o", "json")
		if err != nil {
			return err
		}
		var key struct {
			PublicKey string `json:"public_key"`
		}
		if err := json.Unmarshal([]byte(r.Stdout), &key); err != nil {
			return err
		}
		s.roots = append(s.roots, key.PublicKey)
	}
	return nil
}

// split makes the backup key. Debian's age opens what was made for one who has a key.
func (s *stage) split(ctx context.Context) error {
	args := []string{"key", "custodians", "init", "--threshold", "2", "--out", s.path("custody"), "--passphrase-file", s.path("passphrase")}
	for _, r := range s.custodians {
		args = append(args, "--recipient", r)
	}
	for what, threshold := range map[string]string{"one custodian alone": "1", "four of three": "4"} {
		r, err := s.Ctl(ctx, append(append([]string{}, args...), "--threshold", threshold)...)
		s.Check(err == nil && r.Code == 2, "%s: exit code %d, want 2: %v %s", what, r.Code, err, r.Stderr)
	}
	if _, err := s.must(ctx, args...); err != nil {
		return err
	}
	r, err := s.Ctl(ctx, args...)
	s.Check(err == nil && r.Code == 1, "a second split into the same directory: exit code %d, want 1: %v", r.Code, err)
	text, err := s.tool(ctx, "age", "-d", "-i", s.path("anna.key"), s.share(1))
	if err != nil {
		return err
	}
	opened := os.WriteFile(s.path("share-1.txt"), []byte(text), 0o600)
	for _, c := range [][]string{
		{"--share", s.share(1), "--identity", s.path("anna.key")},
		{"--share", s.share(2), "--identity", s.path("ben.key")},
		{"--share", s.share(3), "--passphrase-file", s.path("passphrase")},
		{"--share", s.path("share-1.txt")},
	} {
		r, err := s.Ctl(ctx, append([]string{"key", "custodians", "check", "--backup-key", s.path("custody", "backup.pub")}, c...)...)
		s.Check(err == nil && r.Code == 0, "custodians check %v: exit code %d: %v %s", c, r.Code, err, r.Stderr)
	}
	r, err = s.Ctl(ctx, "key", "custodians", "check", "--share", s.share(1), "--identity", s.path("ben.key"))
	s.Check(err == nil && r.Code == 77, "the share of another: exit code %d, want 77: %v", r.Code, err)
	return errors.Join(opened, err)
}

func (s *stage) share(n int) string { return s.path("custody", fmt.Sprintf("share-%d.age", n)) }

// openDoors enrols the devices. Each has its own copy of the authorities.
func (s *stage) openDoors(ctx context.Context) (err error) {
	ca, err := os.ReadFile(s.path("state", "ca.pem"))
	if err == nil {
		err = os.WriteFile(s.CA, ca, 0o600)
	}
	if err != nil {
		return err
	}
	if s.door, err = s.OpenMachine(ctx, rig.MachineConfig{Dir: s.dir, Name: "door", Keys: "accept = [100, 200, 300]"}); err != nil {
		return err
	}
	s.gate, err = s.OpenMachine(ctx, rig.MachineConfig{Dir: s.dir, Name: "gate", Keys: "accept = [100, 200, 300]\nstrict = true"})
	return err
}

func (s *stage) enrol(ctx context.Context, p person) error {
	code, err := s.Invite(ctx, "client", p.name, p.roles...)
	if err != nil {
		return err
	}
	args := append([]string{"enrol", "--url", s.URL}, p.extra...)
	if len(p.extra) > 0 {
		args = append(args, s.path("password"))
	}
	r, err := s.phone(ctx, p.name, append(args, code)...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("enrolling %s: exit code %d: %s", p.name, r.Code, r.Stderr)
	}
	return err
}

// phone runs countersign-client.
func (s *stage) phone(ctx context.Context, name string, args ...string) (rig.Result, error) {
	return s.Config.Bin.Run(ctx, rig.Call{Program: "countersign-client", Args: append([]string{"--state", s.path("phone-" + name)}, args...)})
}

// authorization is one case: who, at which level, and how it must end.
type authorization struct {
	name  string
	level int
	want  int // exit code
}

// authorize has a phone authorize at a device.
func (s *stage) authorize(ctx context.Context, at *rig.Machine, a authorization) error {
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
	r, err := s.phone(ctx, a.name, args...)
	if err != nil {
		return err
	}
	s.Check(r.Code == a.want, "%s at level %d: exit code %d, want %d: %s %s", a.name, a.level, r.Code, a.want, r.Stdout, r.Stderr)
	if r.Code == 0 {
		s.approved++
	}
	var told struct {
		Level int `json:"level"`
	}
	if r.Code == 0 && a.want == 0 {
		err = json.Unmarshal([]byte(r.Stdout), &told)
		s.Check(err == nil && told.Level == a.level, "%s was approved at level %d, want %d: %v", a.name, told.Level, a.level, err)
	}
	return nil
}

// Exit codes of countersign-client.
const (
	denied = 3
	later  = 75
)

// everybody authorizes at levels 1 to 4, at both devices, and verifies the receipts.
func (s *stage) everybody(ctx context.Context) error {
	for _, at := range []*rig.Machine{s.door, s.gate} {
		for _, a := range []authorization{{"alice", 1, 0}, {"bob", 2, 0}, {"dora", 3, 0}, {"dora", 4, later}} {
			if err := s.authorize(ctx, at, a); err != nil {
				return err
			}
		}
		r, err := s.phone(ctx, "frank", "approve", "--link", at.Link, "--yes", "--password-file", s.path("password"))
		s.Check(err == nil && r.Code == 0, "frank approves: exit code %d: %v %s %s", r.Code, err, r.Stdout, r.Stderr)
		s.approved++
		r, err = s.phone(ctx, "dora", "status", "--last", "--link", at.Link, "-o", "json")
		s.Check(err == nil && r.Code == 0, "what became of it: exit code %d: %v %s", r.Code, err, r.Stderr)
	}
	r, err := s.phone(ctx, "bob", "authorize", "--link", s.door.Link, "--service", "100", "--level", "2", "--yes", "--password-file", s.path("wrong"))
	s.Check(err == nil && r.Code == later, "a wrong password: exit code %d, want %d: %v", r.Code, later, err)
	r, err = s.phone(ctx, "bob", "resume", "--link", s.door.Link, "--yes", "--password-file", s.path("password"))
	s.Check(err == nil && r.Code == 0, "then the right one: exit code %d: %v %s", r.Code, err, r.Stderr)
	s.approved++
	for _, name := range []string{"alice", "bob", "dora"} {
		r, err := s.phone(ctx, name, "receipts", "verify")
		s.Check(err == nil && r.Code == 0, "receipts of %s: exit code %d: %v %s", name, r.Code, err, r.Stderr)
	}
	return s.acted()
}

// acted: the devices have acted once for each approval.
func (s *stage) acted() error {
	n := 0
	for _, m := range []*rig.Machine{s.door, s.gate} {
		acts, err := m.Acts()
		if err != nil {
			return err
		}
		n += len(acts)
	}
	s.Check(n == s.approved, "%d acts for %d approvals", n, s.approved)
	return nil
}
