package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // to break the store behind the appliance's back

	"countersign/softhsm-test/attack/arena"
	"countersign/softhsm-test/rig"
)

type config struct {
	bin    string
	broken string // what to break, "" for nothing
	seed   uint64
	turns  []turn
	quick  bool
	out    io.Writer
}

// stage is the appliance with its relay, a strict device, a device that sleeps, and
// phones.
type stage struct {
	config
	*rig.Appliance
	*arena.Report
	dir    string
	random *mathrand.Rand
	strict *rig.Machine
	asleep *rig.Machine
	insist *insistent // a phone that will not follow
	late   string     // activation code from before everything

	wrapped map[string]bool // verifiers in the store before the step
}

// password of every phone that has one.
const password = "correct horse battery staple"

func open(ctx context.Context, c config) (*stage, error) {
	bin, err := rig.Find(c.bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "countersign-rotate-")
	if err != nil {
		return nil, err
	}
	s := &stage{config: c, Report: arena.NewReport(c.out), dir: dir, random: mathrand.New(mathrand.NewPCG(c.seed, 0))}
	if s.Appliance, err = rig.Start(ctx, rig.Config{Bin: bin, Dir: filepath.Join(dir, "dev")}); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.furnish(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// furnish enrols devices and phones.
func (s *stage) furnish(ctx context.Context) (err error) {
	if err := os.WriteFile(s.passwordFile(), []byte(password+"\n"), 0o600); err != nil {
		return err
	}
	if s.strict, err = s.OpenMachine(ctx, rig.MachineConfig{Dir: s.dir, Name: "strict", Keys: "accept = [100]\nstrict = true"}); err != nil {
		return err
	}
	if s.asleep, err = s.OpenMachine(ctx, rig.MachineConfig{Dir: s.dir, Name: "asleep", Keys: "accept = [100]"}); err != nil {
		return err
	}
	if _, err := s.asleep.Stop(); err != nil {
		return err
	}
	for _, name := range append(append([]string{}, sleepers...), "mallory", "crash") {
		if err := s.enrol(ctx, name); err != nil {
			return err
		}
	}
	for _, w := range workers {
		if err := s.enrol(ctx, w.name); err != nil {
			return err
		}
	}
	if s.insist, err = newInsistent(ctx, s.Appliance); err != nil {
		return err
	}
	if s.late, err = s.Invite(ctx, "client", "late"); err != nil {
		return err
	}
	return s.must(ctx, "client", "suspend", "mallory")
}

func (s *stage) passwordFile() string { return filepath.Join(s.dir, "password") }

// enrol enrols a phone; one whose name ends in "+" has a password.
func (s *stage) enrol(ctx context.Context, name string) error {
	code, err := s.Invite(ctx, "client", plain(name))
	if err != nil {
		return err
	}
	return s.enrolWith(ctx, name, code)
}

func (s *stage) enrolWith(ctx context.Context, name, code string) error {
	args := []string{"enrol", "--url", s.URL}
	if plain(name) != name {
		args = append(args, "--password-file", s.passwordFile())
	}
	r, err := s.phone(ctx, name, append(args, code)...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("enrolling %s: exit code %d: %s", name, r.Code, r.Stderr)
	}
	return err
}

func plain(name string) string {
	if n := len(name) - 1; name[n] == '+' {
		return name[:n]
	}
	return name
}

// phone runs countersign-client.
func (s *stage) phone(ctx context.Context, name string, args ...string) (rig.Result, error) {
	state := filepath.Join(s.dir, "phone-"+plain(name))
	return s.Config.Bin.Run(ctx, rig.Call{Program: "countersign-client", Args: append([]string{"--state", state}, args...)})
}

// authorize has a phone authorize the door at a device.
func (s *stage) authorize(ctx context.Context, name, link string) (rig.Result, error) {
	args := []string{"authorize", "--link", link, "--service", "100", "--yes", "-o", "json"}
	if plain(name) != name {
		args = append(args, "--level", "2", "--password-file", s.passwordFile())
	}
	return s.phone(ctx, name, args...)
}

// must runs countersignctl, which ends with exit code 0.
func (s *stage) must(ctx context.Context, args ...string) error {
	r, err := s.Ctl(ctx, args...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("countersignctl %v: exit code %d: %s", args, r.Code, r.Stderr)
	}
	return err
}

// database is the appliance's, as the driver names it.
func (s *stage) database() string {
	source := url.URL{Scheme: "file", Path: filepath.Join(s.dir, "dev", "countersign.db"), RawQuery: "_pragma=busy_timeout(5000)"}
	return source.String()
}

// tamper writes to the store behind the appliance's back.
func (s *stage) tamper(ctx context.Context, statement string) error {
	db, err := sql.Open("sqlite", s.database())
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, statement)
	return errors.Join(err, db.Close())
}

// close stops everything and removes the directory.
func (s *stage) close() error {
	var errs []error
	for _, m := range []*rig.Machine{s.strict, s.asleep} {
		if m != nil && m.Daemon != nil {
			_, err := m.Stop()
			errs = append(errs, err)
		}
	}
	_, err := s.Stop()
	return errors.Join(append(errs, err, os.RemoveAll(s.dir))...)
}
