package rotate

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

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

// worker authorizes without pause, one after the other.
type worker struct {
	name   string // of its phone
	strict bool   // at the strict device
	want   int    // exit code of every one
}

var workers = []worker{
	{name: "alice"},
	{name: "bob", strict: true},
	{name: "carol+"},
	{name: "dave"},
}

// exitDenied is what countersign-client ends with when it is refused.
const exitDenied = 3

// load is authorizations under way.
type load struct {
	*stage
	stop   atomic.Bool
	group  sync.WaitGroup
	rounds []atomic.Int64 // of each worker
	good   atomic.Int64   // approved
	shut   atomic.Int64   // refused, as they must be

	newcomers int // phones that were enrolled meanwhile, each used once
}

// start begins the load: the workers, and a suspended phone.
func (s *stage) start(ctx context.Context) *load {
	all := append(append([]worker{}, workers...), worker{name: "mallory", want: exitDenied})
	l := &load{stage: s, rounds: make([]atomic.Int64, len(all))}
	for i, w := range all {
		l.group.Go(func() {
			for !l.stop.Load() && ctx.Err() == nil {
				l.once(ctx, w)
				l.rounds[i].Add(1)
			}
		})
	}
	return l
}

// once is one authorization: one case.
func (l *load) once(ctx context.Context, w worker) {
	link := l.Link
	if w.strict {
		link = l.strict.Link
	}
	var r harness.Result
	err := harness.Try(func() { r = l.authorize(ctx, w.name, link) })
	if ctx.Err() != nil {
		return
	}
	l.Check(err == nil && r.Code == w.want, "%s: exit code %d, want %d: %v %s %s", w.name, r.Code, w.want, err, r.Stdout, r.Stderr)
	switch {
	case err != nil:
	case r.Code == 0:
		l.good.Add(1)
	case r.Code == w.want:
		l.shut.Add(1)
	}
}

// passes waits until every worker has begun and ended two authorizations since the call, so that
// each has met the change before it.
func (l *load) passes(ctx context.Context) {
	before := make([]int64, len(l.rounds))
	for i := range l.rounds {
		before[i] = l.rounds[i].Load()
	}
	harness.Do(harness.Until(ctx, "authorizations", func() (bool, error) {
		for i := range l.rounds {
			if l.rounds[i].Load() < before[i]+2 {
				return false, nil
			}
		}
		return true, ctx.Err()
	}))
}

// end stops the load and checks its traces: as many acts as approvals, and one name for each phone
// and device under every version of mac.
func (l *load) end(before int) {
	l.stop.Store(true)
	l.group.Wait()
	acts, names := l.acts()
	l.Check(int64(len(acts)-before) == l.good.Load(), "%d acts for %d approvals: %s", len(acts)-before, l.good.Load(), refusals(l.Log()+l.strict.Log()))
	for at, phones := range map[string]int{"relay": 3 + l.newcomers, "strict": 1} {
		l.Check(len(names[at]) == phones, "%s knows %d names of %d phones: pairwise ids have changed", at, len(names[at]), phones)
	}
	l.Say("%d approved, %d refused as they must be", l.good.Load(), l.shut.Load())
}

// refusals are what devices logged of decisions that they did not take.
func refusals(log string) string {
	var lines []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, "decision refused") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, " ")
}

// acts returns the acts of both devices, and the pairwise ids that each has seen.
func (s *stage) acts() (all []harness.Act, names map[string]map[string]bool) {
	names = map[string]map[string]bool{"relay": {}, "strict": {}}
	for at, path := range map[string]string{"relay": s.Hooklog, "strict": s.strict.Hooklog} {
		acts := harness.Must(harness.ReadActs(path))
		for _, act := range acts {
			names[at][act.Pairwise] = true
		}
		all = append(all, acts...)
	}
	return all, names
}

// keys asks for the key versions of a step or a list.
func (s *stage) keys(ctx context.Context, args ...string) (keys []key, r harness.Result) {
	r = harness.Must(s.Ctl(ctx, append(append([]string{"key"}, args...), "-o", "json")...))
	if r.Code == 0 {
		harness.Do(json.Unmarshal([]byte(r.Stdout), &keys))
	}
	return keys, r
}

// key holds the fields of a key version that are checked.
type key struct {
	Name     string `json:"name"`
	Version  uint64 `json:"version"`
	State    string `json:"state"`
	Accepted bool   `json:"accepted"`
	ID       string `json:"id"`
	Public   string `json:"public_key"`
}

func (k key) ref() string { return fmt.Sprintf("%s@%d", k.Name, k.Version) }
