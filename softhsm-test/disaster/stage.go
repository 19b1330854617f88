package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"countersign/softhsm-test/attack/arena"
	"countersign/softhsm-test/rig"
)

type config struct {
	bin    string
	broken string // what to break, "" for nothing
	seed   uint64
	quick  bool
	out    io.Writer
}

// stage is an appliance by init and serve, with its token, custodians, devices and
// phones. Its ports stay the same over the disaster, as a bank's address would.
type stage struct {
	config
	*rig.Appliance
	*arena.Report
	dir    string
	random *mathrand.Rand
	door   *rig.Machine // ordinary
	gate   *rig.Machine // strict

	custodians []string // recipients of the custodians who have a key
	approved   int      // acts that there must be
	code       string   // activation code that was open when the database was copied
	roots      []string // public keys of roots 1 and 2, as the custodians' paper has them
}

// Of every phone that has one; of the third custodian; of the token.
const (
	password   = "correct horse battery staple"
	passphrase = "a sentence that only the third custodian says"
	pin        = "disaster-pin"
	softhsm    = "/usr/lib/softhsm/libsofthsm2.so"
)

func open(ctx context.Context, c config) (*stage, error) {
	bin, err := rig.Find(c.bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "countersign-disaster-")
	if err != nil {
		return nil, err
	}
	s := &stage{
		config: c, Report: arena.NewReport(c.out), dir: dir, random: mathrand.New(mathrand.NewPCG(c.seed, 0)),
		Appliance: &rig.Appliance{Config: rig.Config{Bin: bin, Dir: dir}},
	}
	if err := s.found(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

const configTOML = `state_dir = "state"
[hsm]
module = %q
pin = { source = "file", path = "pin" }
[api]
listen = %q
[ops]
listen = %q
[trust]
domain = "bank.test"
[backup]
recipient = "custody/backup.pub"
`

// found is all there is before init: ports, configuration, files of secrets, a token
// and the custodians' keys.
func (s *stage) found(ctx context.Context) error {
	api, err := freeAddress()
	if err != nil {
		return err
	}
	ops, err := freeAddress()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(api)
	if err != nil {
		return err
	}
	s.Info = rig.Info{URL: "https://localhost:" + port, CA: s.path("ca.pem"), Admin: "unix:" + s.path("state", "admin.sock")}
	for name, text := range map[string]string{
		"config.toml": fmt.Sprintf(configTOML, softhsm, api, ops), "pin": pin + "\n", "password": password + "\n", "wrong": "another\n",
		"passphrase": passphrase + "\n", "softhsm2.conf": "directories.tokendir = " + s.path("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n",
	} {
		if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := s.newToken(ctx); err != nil {
		return err
	}
	for _, name := range []string{"anna", "ben"} {
		if _, err := s.tool(ctx, "age-keygen", "-o", s.path(name+".key")); err != nil {
			return err
		}
		recipient, err := s.tool(ctx, "age-keygen", "-y", s.path(name+".key"))
		if err != nil {
			return err
		}
		s.custodians = append(s.custodians, strings.TrimSpace(recipient))
	}
	return nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (s *stage) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

// env names the token directory to SoftHSM.
func (s *stage) env() []string { return []string{"SOFTHSM2_CONF=" + s.path("softhsm2.conf")} }

// newToken makes an empty token of the same label, with another serial number.
func (s *stage) newToken(ctx context.Context) error {
	if err := errors.Join(os.RemoveAll(s.path("tokens")), os.Mkdir(s.path("tokens"), 0o700)); err != nil {
		return err
	}
	_, err := s.tool(ctx, "softhsm2-util", "--init-token", "--free", "--label", "countersign", "--pin", pin, "--so-pin", pin)
	return err
}

// tool runs a program of Debian's, which must succeed.
func (s *stage) tool(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), s.env()...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// countersignd runs a command of the daemon to its end.
func (s *stage) countersignd(ctx context.Context, args ...string) (rig.Result, error) {
	return s.Config.Bin.Run(ctx, rig.Call{Program: "countersignd", Args: s.daemonArgs(args), Env: s.env()})
}

func (s *stage) daemonArgs(args []string) []string {
	return append(args, "--config", s.path("config.toml"))
}

// serve starts the daemon and waits until it answers.
func (s *stage) serve(ctx context.Context) (err error) {
	s.Daemon, err = s.Config.Bin.Start(rig.Call{Program: "countersignd", Args: s.daemonArgs([]string{"serve"}), Env: s.env()})
	if err != nil {
		return err
	}
	return rig.Until(ctx, "countersignd serve", func() (bool, error) {
		if !s.Running() {
			return false, fmt.Errorf("it ended: %s", s.Log())
		}
		r, err := s.Ctl(ctx, "status")
		return r.Code == 0, err
	})
}

// must runs countersignctl, which ends with exit code 0.
func (s *stage) must(ctx context.Context, args ...string) (rig.Result, error) {
	r, err := s.Ctl(ctx, args...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("countersignctl %v: exit code %d: %s", args, r.Code, r.Stderr)
	}
	return r, err
}

// close stops everything and removes the directory.
func (s *stage) close() error {
	var errs []error
	for _, m := range []*rig.Machine{s.door, s.gate} {
		if m != nil && m.Daemon != nil {
			_, err := m.Stop()
			errs = append(errs, err)
		}
	}
	if s.Daemon != nil {
		_, err := s.Stop()
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}
