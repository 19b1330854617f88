package disaster

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
)

// stage is an appliance by init and serve, with its token, custodians, devices and
// phones. Its ports stay the same over the disaster, as a bank's address would.
type stage struct {
	*harness.Appliance
	*harness.Report
	dir    string
	random *mathrand.Rand
	door   *harness.Machine // ordinary
	gate   *harness.Machine // strict

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
)

// open prepares the configuration, a token and the custodians' keys. Everything is stopped
// after the test.
func open(r *harness.Report, bin harness.Bin) *stage {
	s := &stage{Report: r, dir: harness.TempDir(r.T()), random: harness.Seed(r.T())}
	s.Appliance = &harness.Appliance{Config: harness.Config{Bin: bin, Dir: s.dir}}
	s.found(r.Context())
	return s
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
func (s *stage) found(ctx context.Context) {
	api, ops := harness.FreeAddress(), harness.FreeAddress()
	_, port := harness.Must2(net.SplitHostPort(api))
	s.Info = harness.Info{URL: "https://localhost:" + port, CA: s.path("ca.pem"), Admin: "unix:" + s.path("state", "admin.sock")}
	for name, text := range map[string]string{
		"config.toml": fmt.Sprintf(configTOML, harness.SoftHSM, api, ops), "pin": pin + "\n", "password": password + "\n", "wrong": "another\n",
		"passphrase": passphrase + "\n", "softhsm2.conf": "directories.tokendir = " + s.path("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n",
	} {
		harness.Do(os.WriteFile(s.path(name), []byte(text), 0o600))
	}
	s.emptyToken(ctx)
	names := []string{"anna", "ben"}
	if testing.Short() {
		names = append(names, "carl")
	}
	for _, name := range names {
		s.tool(ctx, "age-keygen", "-o", s.path(name+".key"))
		s.custodians = append(s.custodians, strings.TrimSpace(s.tool(ctx, "age-keygen", "-y", s.path(name+".key"))))
	}
}

func (s *stage) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

// env names the token directory to SoftHSM.
func (s *stage) env() []string { return []string{"SOFTHSM2_CONF=" + s.path("softhsm2.conf")} }

// emptyToken removes the state, and replaces the token by an empty one with the same label and
// another serial number.
func (s *stage) emptyToken(ctx context.Context) {
	harness.Do(errors.Join(os.RemoveAll(s.path("state")), os.RemoveAll(s.path("tokens")), os.Mkdir(s.path("tokens"), 0o700)))
	s.tool(ctx, "softhsm2-util", "--init-token", "--free", "--label", "countersign", "--pin", pin, "--so-pin", pin)
}

// tool runs a program of Debian's, which must succeed.
func (s *stage) tool(ctx context.Context, name string, args ...string) string {
	return harness.Tool(ctx, s.env(), name, args...)
}

// list lists the private and secret keys on the token.
func (s *stage) list(ctx context.Context) []harness.Object {
	return harness.Objects(ctx, pin, s.env())
}

// countersignd runs a command of the daemon to its end.
func (s *stage) countersignd(ctx context.Context, args ...string) harness.Result {
	return harness.Must(s.Config.Bin.Run(ctx, harness.Call{Program: "countersignd", Args: s.daemonArgs(args), Env: s.env()}))
}

func (s *stage) daemonArgs(args []string) []string {
	return append(args, "--config", s.path("config.toml"))
}

// serve starts the daemon and waits until it answers.
func (s *stage) serve(ctx context.Context) {
	s.Daemon = harness.Must(s.Config.Bin.Start(harness.Call{Program: "countersignd", Args: s.daemonArgs([]string{"serve"}), Env: s.env()}))
	harness.Do(harness.Until(ctx, "countersignd serve", func() (bool, error) {
		if !s.Running() {
			return false, fmt.Errorf("it ended: %s", s.Log())
		}
		r, err := s.Ctl(ctx, "status")
		return r.Code == 0, err
	}))
}
