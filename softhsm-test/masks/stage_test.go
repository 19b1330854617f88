package masks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/masks/profiles"
	"countersign/softhsm-test/shim"
	"countersign/softhsm-test/shim/shimtest"
)

// stage is an appliance by init and serve on a token behind a mask, with a device and a phone.
type stage struct {
	*harness.Appliance
	*harness.Report
	shim.Shim
	course
	dir  string
	mask []string // environment
	door *harness.Machine
}

// Of the token, and of the phone.
const (
	pin      = "masks-pin"
	password = "correct horse battery staple"
)

const configTOML = `state_dir = "state"
[hsm]
module = %q
password_check = %q
pin = { source = "file", path = "pin" }
[api]
listen = %q
[ops]
listen = %q
[trust]
domain = "bank.test"
`

const backupTOML = `[backup]
recipient = "custody/backup.pub"
`

// open prepares configuration, secrets and a token.
func open(r *harness.Report, bin harness.Bin, c course) *stage {
	s := &stage{Report: r, course: c, dir: harness.TempDir(r.T())}
	s.Appliance = &harness.Appliance{Config: harness.Config{Bin: bin, Dir: s.dir}}
	s.Shim = harness.Must(shimtest.New(string(bin), s.dir))
	profile := harness.Must(profiles.Named(c.profile))
	s.mask = []string{harness.Must(profile.Write(s.dir))}
	secret := pin
	if profile.UserPassword() {
		secret = "countersign:" + pin
	}
	for name, text := range map[string]string{
		"pin": secret + "\n", "right": password + "\n", "wrong": "another\n",
		"softhsm2.conf": "directories.tokendir = " + s.path("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n",
	} {
		write(s.path(name), text)
	}
	s.emptyToken(r.Context())
	return s
}

// close stops what runs.
func (s *stage) close() {
	if s.door != nil {
		harness.Must(s.door.Stop())
	}
	if s.Daemon != nil {
		harness.Must(s.Stop())
	}
}

func (s *stage) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

// env is the environment of the daemon, with the mask.
func (s *stage) env() []string { return append(s.unmasked(), append(s.Env(), s.mask...)...) }

func (s *stage) unmasked() []string { return []string{"SOFTHSM2_CONF=" + s.path("softhsm2.conf")} }

// emptyToken removes the state and makes a fresh token.
func (s *stage) emptyToken(ctx context.Context) {
	harness.Do(errors.Join(os.RemoveAll(s.path("state")), os.RemoveAll(s.path("tokens")), os.Mkdir(s.path("tokens"), 0o700)))
	harness.Tool(ctx, s.unmasked(), "softhsm2-util", "--init-token", "--free", "--label", "countersign", "--pin", pin, "--so-pin", pin)
}

// configure writes the configuration, which ends in more.
func (s *stage) configure(more string) {
	api, ops := harness.FreeAddress(), harness.FreeAddress()
	_, port := harness.Must2(net.SplitHostPort(api))
	s.Info = harness.Info{URL: "https://localhost:" + port, CA: s.path("state", "ca.pem"), Admin: "unix:" + s.path("state", "admin.sock")}
	check := "hsm"
	if s.host {
		check = "host"
	}
	write(s.path("config.toml"), fmt.Sprintf(configTOML, s.Module, check, api, ops)+more)
}

// countersignd runs a command of the daemon to its end.
func (s *stage) countersignd(ctx context.Context, args ...string) harness.Result {
	return harness.Must(s.Config.Bin.Run(ctx, s.call(args...)))
}

func (s *stage) call(args ...string) harness.Call {
	return harness.Call{Program: "countersignd", Args: append(args, "--config", s.path("config.toml")), Env: s.env()}
}

// serve starts the daemon and waits until it answers.
func (s *stage) serve(ctx context.Context) {
	s.Daemon = harness.Must(s.Config.Bin.Start(s.call("serve")))
	harness.Do(harness.Until(ctx, "countersignd serve", func() (bool, error) {
		if !s.Running() {
			return false, fmt.Errorf("it ended: %s", s.Log())
		}
		r, err := s.Ctl(ctx, "status")
		return r.Code == 0, err
	}))
}

// phone runs countersign-client.
func (s *stage) phone(ctx context.Context, args ...string) harness.Result {
	return s.Phone(ctx, s.path("phone"), args...)
}

// split makes a backup key for two custodians.
func (s *stage) split(ctx context.Context) {
	args := []string{"key", "custodians", "init", "--threshold", "2", "--out", s.path("custody")}
	for _, name := range []string{"anna", "ben"} {
		harness.Tool(ctx, nil, "age-keygen", "-o", s.path(name+".key"))
		args = append(args, "--recipient", strings.TrimSpace(harness.Tool(ctx, nil, "age-keygen", "-y", s.path(name+".key"))))
	}
	s.MustCtl(ctx, args...)
}
