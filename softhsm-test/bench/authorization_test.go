// Package bench measures whole authorizations against the real programs. It has
// benchmarks only; `make bench` runs them with the raw speed of the token beside.
package bench

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
)

const door protocol.Service = 100

// levels are authorizations of a door, at the level that the phone asks for.
var levels = []protocol.Level{1, 2, 3}

// site is a running appliance with a device that talks to it over loopback TLS.
type site struct {
	*testing.B
	*harness.Appliance
	device *device.Device
}

func newSite(b *testing.B) *site {
	b.Helper()
	programs, err := harness.Find("../../bin")
	if err != nil {
		b.Fatalf("%v: run make build", err)
	}
	dir, err := os.MkdirTemp("", "countersign-bench-") // short: a Unix socket lies in it
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	a, err := harness.Start(b.Context(), harness.Config{Bin: programs, Dir: dir + "/dev"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if _, err := a.Stop(); err != nil {
			b.Error(err)
		}
	})
	s := &site{B: b, Appliance: a}
	code := s.invite("device", "bench")
	if s.device, err = device.Enrol(b.Context(), device.Config{URL: a.URL, CA: a.CA}, code); err != nil {
		b.Fatal(err)
	}
	return s
}

func (s *site) invite(noun, name string) string {
	s.Helper()
	code, err := s.Invite(s.Context(), noun, name)
	if err != nil {
		s.Fatal(err)
	}
	return code
}

func (s *site) phones(n int) []*phone.Phone {
	s.Helper()
	var all []*phone.Phone
	for i := range n {
		code := s.invite("client", "phone-"+strconv.Itoa(i))
		p, err := phone.EnrolWith(s.Context(), phone.Application{URL: s.URL, Code: code, Means: phone.Full()})
		if err != nil {
			s.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// authorize runs a whole authorization. Anything but an approval is an error, so that nothing else
// is counted.
func (s *site) authorize(ctx context.Context, p *phone.Phone, level protocol.Level) error {
	p1 := p.Next(door)
	p1.Level = level
	session, err := p.Apply(p1.Marshal())
	if err != nil {
		return err
	}
	applied, err := s.device.Apply(ctx, deviceapi.ApplyRequest{
		M1: session.M1, Order: deviceapi.Order{Services: []protocol.Service{door}}, Link: deviceapi.LinkWire, Nonce: device.NewNonce(),
	})
	if err != nil {
		return err
	}
	if err := session.Open(applied.M2); err != nil {
		return err
	}
	m3, err := session.Countersign(ctx, protocol.Approve)
	if err != nil {
		return err
	}
	answer, err := s.device.Countersign(ctx, deviceapi.CountersignRequest{Handle: applied.Handle, M3: m3})
	if err != nil {
		return err
	}
	p4, err := session.Result(m3, answer.M4)
	if err != nil {
		return err
	}
	if p4.Result != protocol.ResultApproved || answer.Decision == nil {
		return fmt.Errorf("answered %s, code %d", p4.Result, p4.Reason)
	}
	return nil
}

// cost is what the appliance and its workers have used so far.
type cost struct {
	ticks float64 // CPU of countersignd and hsm-worker, seconds
	calls float64 // HSM operations
}

func (s *site) cost() cost {
	s.Helper()
	c := cost{calls: s.hsmCalls()}
	children, err := s.Children()
	if err != nil {
		s.Fatal(err)
	}
	pids := []int{s.PID()}
	for _, p := range children {
		if p.Name == "hsm-worker" {
			pids = append(pids, p.PID)
		}
	}
	if len(pids) != 3 {
		s.Fatalf("%d processes of the appliance, want countersignd and two workers", len(pids))
	}
	for _, pid := range pids {
		c.ticks += s.cpu(pid)
	}
	return c
}

// cpu returns the user and system time of a process, as getrusage reports it to the process itself.
func (s *site) cpu(pid int) float64 {
	s.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		s.Fatal(err)
	}
	fields := strings.Fields(string(raw)[strings.LastIndexByte(string(raw), ')')+1:])
	var sum float64
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			s.Fatal(err)
		}
		sum += ticks / 100 // USER_HZ, proc(5)
	}
	return sum
}

// hsmCalls counts HSM operations by the appliance's own metrics.
func (s *site) hsmCalls() (sum float64) {
	s.Helper()
	res, err := http.Get(s.Ops + "/metrics")
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "countersign_hsm_seconds_count") && strings.Contains(line, `part="call"`) {
			value, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				s.Fatal(err)
			}
			sum += value
		}
	}
	return sum
}

// BenchmarkAuthorization is a whole authorization over loopback TLS, one after the
// other and from eight phones at once. The phone's and the device's work is part of
// the time and not of the CPU.
func BenchmarkAuthorization(b *testing.B) {
	for _, level := range levels {
		for _, parallel := range []int{1, 8} {
			b.Run(fmt.Sprintf("level%d/%d", level, parallel), func(b *testing.B) {
				s := newSite(b)
				phones := s.phones(parallel)
				one := func(p *phone.Phone) error { return s.authorize(b.Context(), p, level) }
				for _, p := range phones {
					if err := one(p); err != nil {
						b.Fatal(err)
					}
				}
				s.measure(one, phones)
			})
		}
	}
}

func (s *site) measure(one func(*phone.Phone) error, phones []*phone.Phone) {
	s.Helper()
	before := s.cost()
	records, err := s.Status(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	s.ResetTimer()
	var left atomic.Int64
	left.Store(int64(s.N))
	failed := make(chan error, len(phones))
	for _, p := range phones {
		go func() {
			var err error
			for err == nil && left.Add(-1) >= 0 {
				err = one(p)
			}
			failed <- err
		}()
	}
	for range phones {
		if err := <-failed; err != nil {
			s.Error(err)
		}
	}
	s.StopTimer()
	after := s.cost()
	now, err := s.Status(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	if made := now.Counts.Decisions - records.Counts.Decisions; made != uint64(s.N) {
		s.Errorf("%d decisions in the store for %d authorizations", made, s.N)
	}
	s.ReportMetric((after.ticks-before.ticks)*1e6/float64(s.N), "appliance-cpu-µs/op")
	s.ReportMetric((after.calls-before.calls)/float64(s.N), "hsm-ops/op")
	s.ReportMetric(float64(s.N)/s.Elapsed().Seconds(), "ops/s")
}

// BenchmarkIdle is the memory of a started appliance, proportional set size (PSS):
// of countersignd with its workers, and of relayd.
func BenchmarkIdle(b *testing.B) {
	s := newSite(b)
	children, err := s.Children()
	if err != nil {
		b.Fatal(err)
	}
	appliance, relay := s.pss(s.PID()), 0.0
	for _, p := range children {
		if p.Name == "hsm-worker" {
			appliance += s.pss(p.PID)
		} else {
			relay += s.pss(p.PID)
		}
	}
	b.ReportMetric(appliance, "appliance-MiB")
	b.ReportMetric(relay, "relayd-MiB")
	b.ReportMetric(0, "ns/op")
}

func (s *site) pss(pid int) float64 {
	s.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		s.Fatalf("%v: the programs are not dumpable, so this takes root", err)
	}
	for line := range strings.SplitSeq(string(raw), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Pss:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				s.Fatal(err)
			}
			return kib / 1024
		}
	}
	s.Fatal("smaps_rollup has no Pss")
	return 0
}
