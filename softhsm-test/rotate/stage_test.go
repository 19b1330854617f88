package rotate

import (
	"context"
	"database/sql"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // to break the store behind the appliance's back

	"countersign/softhsm-test/harness"
)

// stage is the appliance with its relay, a strict device, a device that sleeps, and
// phones.
type stage struct {
	*harness.Appliance
	*harness.Report
	turns  []turn
	dir    string
	random *mathrand.Rand
	strict *harness.Machine
	asleep *harness.Machine
	insist *insistent // a phone that will not follow
	late   string     // activation code from before everything

	wrapped map[string]bool // verifiers in the store before the step
}

// password of every phone that has one.
const password = "correct horse battery staple"

// open starts an appliance, and enrols devices and phones.
func open(r *harness.Report, bin harness.Bin) *stage {
	s := &stage{Report: r, turns: chosen(), dir: harness.TempDir(r.T()), random: harness.Seed(r.T())}
	s.Appliance = harness.Must(harness.Start(r.Context(), harness.Config{Bin: bin, Dir: filepath.Join(s.dir, "dev")}))
	s.furnish(r.Context())
	return s
}

// furnish enrols devices and phones.
func (s *stage) furnish(ctx context.Context) {
	harness.Do(os.WriteFile(s.passwordFile(), []byte(password+"\n"), 0o600))
	s.strict = harness.Must(s.OpenMachine(ctx, harness.MachineConfig{Dir: s.dir, Name: "strict", Keys: "accept = [100]\nstrict = true"}))
	s.asleep = harness.Must(s.OpenMachine(ctx, harness.MachineConfig{Dir: s.dir, Name: "asleep", Keys: "accept = [100]"}))
	harness.Must(s.asleep.Stop())
	for _, name := range append(append([]string{}, asleep()...), "mallory", "crash") {
		s.enrol(ctx, name)
	}
	for _, w := range workers {
		s.enrol(ctx, w.name)
	}
	s.insist = newInsistent(ctx, s.Appliance)
	s.late = harness.Must(s.Invite(ctx, "client", "late"))
	s.MustCtl(ctx, "client", "suspend", "mallory")
}

func (s *stage) passwordFile() string { return filepath.Join(s.dir, "password") }

// enrol enrols a phone; one whose name ends in "+" has a password.
func (s *stage) enrol(ctx context.Context, name string) {
	code := harness.Must(s.Invite(ctx, "client", plain(name)))
	s.enrolWith(ctx, name, code)
}

func (s *stage) enrolWith(ctx context.Context, name, code string) {
	args := []string{"enrol", "--url", s.URL}
	if plain(name) != name {
		args = append(args, "--password-file", s.passwordFile())
	}
	if r := s.phone(ctx, name, append(args, code)...); r.Code != 0 {
		harness.Fail("enrolling %s: exit code %d: %s", name, r.Code, r.Stderr)
	}
}

func plain(name string) string {
	if n := len(name) - 1; name[n] == '+' {
		return name[:n]
	}
	return name
}

// phone runs countersign-client.
func (s *stage) phone(ctx context.Context, name string, args ...string) harness.Result {
	return s.Phone(ctx, filepath.Join(s.dir, "phone-"+plain(name)), args...)
}

// authorize has a phone authorize the door at a device.
func (s *stage) authorize(ctx context.Context, name, link string) harness.Result {
	args := []string{"authorize", "--link", link, "--service", "100", "--yes", "-o", "json"}
	if plain(name) != name {
		args = append(args, "--level", "2", "--password-file", s.passwordFile())
	}
	return s.phone(ctx, name, args...)
}

// database is the appliance's, as the driver names it.
func (s *stage) database() string {
	source := url.URL{Scheme: "file", Path: filepath.Join(s.dir, "dev", "countersign.db"), RawQuery: "_pragma=busy_timeout(5000)"}
	return source.String()
}

// tamper writes to the store behind the appliance's back.
func (s *stage) tamper(ctx context.Context, statement string) {
	db := harness.Must(sql.Open("sqlite", s.database()))
	harness.Must(db.ExecContext(ctx, statement))
	harness.Do(db.Close())
}
