package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
	"countersign/softhsm-test/shim"
	"countersign/softhsm-test/shim/shimtest"
)

// Deadline of the product's HSM calls, and the allowance for a machine that is busy with this
// harness.
const (
	deadline = 2 * time.Second // hsm.timeout
	margin   = 500 * time.Millisecond
)

// stage is an appliance with a relay on a token behind the fault shim, devices, and
// phones that authorize.
type stage struct {
	*harness.Report
	*harness.Appliance
	shim.Shim
	dir       string
	gates     []*device.Device
	customers []*customer
	journal   *journal
	ops       *ops
}

func open(ctx context.Context, r *harness.Report) *stage {
	bin, dir := harness.Must(harness.Built()), harness.TempDir(r.T())
	s := &stage{Report: r, dir: dir, journal: &journal{spoil: harness.Break() == breakRelease}}
	s.Shim = harness.Must(shimtest.New(string(bin), dir))
	s.Appliance = harness.Must(harness.Start(ctx, harness.Config{Bin: bin, Dir: filepath.Join(dir, "dev"), Module: s.Module, Env: s.Env()}))
	s.ops = newOps(s.Ops, s.PID())
	return s
}

// close ends the appliance, on which the last scene may weigh.
func (s *stage) close() {
	for _, gate := range s.gates {
		gate.Close()
	}
	harness.Must(s.Stop())
}

// once is a rule that strikes one call, or with BREAK=retry the retry of it as well.
func (s *stage) once(rule string) string {
	if harness.Break() == breakRetry {
		return rule + " n=6"
	}
	return rule + " n=1"
}

// enrol enrols so many phones, which use two devices of the harness and the
// appliance's own relay by turns.
func (s *stage) enrol(ctx context.Context, phones int) {
	for i := range 2 {
		code := harness.Must(s.Invite(ctx, "device", "gate-"+strconv.Itoa(i)))
		gate := harness.Must(device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, code))
		s.gates = append(s.gates, gate)
	}
	s.customers = make([]*customer, phones)
	var group errgroup.Group
	group.SetLimit(4)
	for i := range s.customers {
		group.Go(func() (err error) {
			s.customers[i], err = s.newCustomer(ctx, i)
			return err
		})
	}
	harness.Do(group.Wait())
}

func (s *stage) newPhone(ctx context.Context, name string) (*phone.Phone, error) {
	code, err := s.Invite(ctx, "client", name)
	if err != nil {
		return nil, err
	}
	return phone.Enrol(ctx, s.URL, code)
}

func (s *stage) newCustomer(ctx context.Context, i int) (*customer, error) {
	p, err := s.newPhone(ctx, "phone-"+strconv.Itoa(i))
	if err != nil {
		return nil, err
	}
	c := &customer{Phone: p, journal: s.journal}
	if i%2 == 0 {
		c.way = &overAPI{gate: s.gates[i/2%2], journal: s.journal}
	} else {
		c.way = &overLink{link: s.Link}
	}
	return c, nil
}

// sayLog prints the end of the appliance's log.
func (s *stage) sayLog() {
	const most = 8
	lines := strings.Split(strings.TrimSpace(s.Log()), "\n")
	for _, l := range lines[max(len(lines)-most, 0):] {
		s.Say("%s", line(l))
	}
}

// workers are the HSM's processes.
func (s *stage) workers() ([]harness.Process, error) {
	children, err := s.Children()
	if err != nil {
		return nil, err
	}
	var workers []harness.Process
	for _, p := range children {
		if p.Name == "hsm-worker" {
			workers = append(workers, p)
		}
	}
	return workers, nil
}

// whole waits until two workers other than these serve; how long it took.
func (s *stage) whole(ctx context.Context, lost ...harness.Process) time.Duration {
	begun := time.Now()
	err := harness.Until(ctx, "two workers", func() (bool, error) {
		for _, p := range lost {
			if running, err := p.Running(); running || err != nil {
				return false, err
			}
		}
		alive, err := s.ops.metric(ctx, "countersign_hsm_workers")
		if err != nil || alive != 2 {
			return false, err
		}
		workers, err := s.workers()
		return len(workers) == 2, err
	})
	harness.Do(err)
	return time.Since(begun)
}

// during lets the scene go on for a time.
func during(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// works is one authorization that must be approved.
func (s *stage) works(ctx context.Context) error {
	c := s.customers[0]
	before := len(s.journal.approvals())
	if c.step(ctx); len(s.journal.approvals()) == before {
		return fmt.Errorf("not approved: %w", s.journal.last())
	}
	return nil
}

// door is the service that everybody asks for.
const door protocol.Service = 100

// keepToken makes SoftHSM keep its token as an HSM does. At each C_Login SoftHSM truncates
// token.object and then writes the same bytes again, so that a process killed in between leaves an
// empty token for good. Until stop is called, a file that stays empty is written again; stop says
// how often.
func (s *stage) keepToken(ctx context.Context) (stop func() error) {
	files, err := filepath.Glob(filepath.Join(s.state(), "token", "*", "token.object"))
	if err != nil || len(files) != 1 {
		harness.Fail("looking for token.object: %d files: %w", len(files), err)
		return nil
	}
	whole, err := os.ReadFile(files[0])
	if err != nil || len(whole) == 0 {
		harness.Do(errors.Join(err, errors.New("token.object is empty to begin with")))
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	k := keeper{path: files[0], whole: whole}
	go func() { done <- k.keep(ctx) }()
	return func() error {
		cancel()
		err := <-done
		if k.mended != 0 {
			s.Say("SoftHSM lost its token %d times to a kill in C_Login; it was put back", k.mended)
		}
		return err
	}
}

type keeper struct {
	path   string
	whole  []byte
	mended int
}

// keep looks twice before it writes: a C_Login under way has the file empty too.
func (k *keeper) keep(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for wasEmpty := false; ; {
		info, err := os.Stat(k.path)
		if err != nil {
			return err
		}
		empty := info.Size() == 0
		if empty && wasEmpty {
			if err := os.WriteFile(k.path, k.whole, 0o600); err != nil {
				return err
			}
			k.mended++
		}
		wasEmpty = empty
		if ctx.Err() != nil && !empty {
			return nil
		}
		<-tick.C
	}
}

// service is `countersignd serve` on what the stage's appliance, which was stopped,
// has left: token, store, phones.
type service struct {
	*harness.Daemon
	call harness.Call
	url  string
	ops  *ops
}

const serveTOML = `state_dir = %q
[hsm]
module = %q
token_label = "countersign-dev"
pin = { source = "file", path = %q }
sessions = %d
[api]
listen = %q
[ops]
listen = %q
[trust]
domain = "dev.countersign.example"
`

func (s *stage) state() string   { return s.Config.Dir }
func (s *stage) pinFile() string { return filepath.Join(s.state(), "pin") }

// service writes a configuration with so many sessions for each of the two workers.
// Nothing is started.
func (s *stage) service(sessions int) *service {
	harness.Must(s.Stop())
	addresses := []string{harness.FreeAddress(), harness.FreeAddress()}
	path := filepath.Join(s.dir, "serve.toml")
	text := fmt.Sprintf(serveTOML, s.state(), s.Module, s.pinFile(), sessions, addresses[0], addresses[1])
	v := &service{url: "https://" + addresses[0], call: harness.Call{
		Program: "countersignd", Args: []string{"serve", "--config", path},
		Env: append(s.Env(), "SOFTHSM2_CONF="+filepath.Join(s.state(), "softhsm2.conf")),
	}}
	v.ops = newOps("http://"+addresses[1], 0)
	harness.Do(os.WriteFile(path, []byte(text), 0o600))
	return v
}

// start starts it, waits until it is ready and sends all customers there, past any relay.
func (v *service) start(ctx context.Context, s *stage) (err error) {
	if v.Daemon, err = s.Config.Bin.Start(v.call); err != nil {
		return err
	}
	v.ops.pid = v.PID()
	err = harness.Until(ctx, "countersignd serve", func() (bool, error) {
		if !v.Running() {
			return false, fmt.Errorf("it ended: %s", v.Log())
		}
		status, _, err := v.ops.get(ctx, "/readyz")
		return err == nil && status == http.StatusOK, nil // the port is closed at first
	})
	if err != nil {
		return err
	}
	for i := range s.gates {
		s.gates[i].Close()
		s.gates[i] = s.gates[i].At(v.url)
	}
	for i, c := range s.customers {
		c.way = &overAPI{gate: s.gates[i%len(s.gates)], journal: s.journal}
	}
	return nil
}
