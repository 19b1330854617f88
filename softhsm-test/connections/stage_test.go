package connections

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
)

const door protocol.Service = 100

// stage is an appliance with an honest device, a phone, and strangers.
type stage struct {
	*harness.Report
	*harness.Appliance
	device    *device.Device
	phone     *phone.Phone
	strangers *strangers
	watched   *watch
}

func open(ctx context.Context, r *harness.Report, bin harness.Bin) *stage {
	needFiles(2 * flood)
	s := &stage{Report: r}
	s.Appliance = harness.Must(harness.Start(ctx, harness.Config{Bin: bin, Dir: filepath.Join(harness.TempDir(r.T()), "dev")}))
	s.device = harness.Must(device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, harness.Must(s.Invite(ctx, "device", "honest"))))
	s.phone = harness.Must(phone.Enrol(ctx, s.URL, harness.Must(s.Invite(ctx, "client", "honest"))))
	s.strangers = newStrangers(s.URL, addresses)
	s.watched = newWatch(s.memory)
	return s
}

func (s *stage) close() {
	s.watched.stop()
	s.strangers.leave()
	s.device.Close()
	harness.Must(s.Stop())
}

// authorize runs n authorizations, one after the other, on the connection that the device has. It returns the time of
// each: its two requests.
func (s *stage) authorize(ctx context.Context, n int) []time.Duration {
	took := make([]time.Duration, n)
	for i := range took {
		took[i] = harness.Must(s.once(ctx))
	}
	return took
}

func (s *stage) once(ctx context.Context) (took time.Duration, err error) {
	p1 := s.phone.Next(door)
	session, err := s.phone.Apply(p1.Marshal())
	if err != nil {
		return 0, err
	}
	order := deviceapi.Order{Services: []protocol.Service{door}}
	begun := time.Now()
	applied, err := s.device.Apply(ctx, deviceapi.ApplyRequest{M1: session.M1, Order: order, Link: deviceapi.LinkWire, Nonce: device.NewNonce()})
	took = time.Since(begun)
	if err != nil {
		return 0, err
	}
	if err := session.Open(applied.M2); err != nil {
		return 0, err
	}
	m3, err := session.Countersign(ctx, protocol.Approve)
	if err != nil {
		return 0, err
	}
	begun = time.Now()
	answer, err := s.device.Countersign(ctx, deviceapi.CountersignRequest{Handle: applied.Handle, M3: m3})
	took += time.Since(begun)
	if err == nil && answer.Decision == nil {
		err = fmt.Errorf("an authorization was not approved")
	}
	return took, err
}

// calm ends the strangers' connections and waits until the appliance has seen it.
func (s *stage) calm(ctx context.Context) {
	s.strangers.leave()
	harness.Do(harness.Until(ctx, "the strangers' leave", func() (bool, error) {
		return s.metric(ctx, `countersign_api_connections{kind="stranger"}`) == 0, nil
	}))
}

// reached checks that administrators and monitoring get answers.
func (s *stage) reached(ctx context.Context) {
	begun := time.Now()
	_, err := s.Status(ctx)
	s.Check(err == nil && time.Since(begun) < reachable, "countersignctl status in %v%s", time.Since(begun).Round(time.Millisecond), because(err))
	begun = time.Now()
	status, _, err := s.get(ctx, "/readyz")
	s.Check(err == nil && status == http.StatusOK && time.Since(begun) < reachable,
		"/readyz answers %d in %v%s", status, time.Since(begun).Round(time.Millisecond), because(err))
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

func (s *stage) get(ctx context.Context, path string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Ops+path, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }() // read to its end
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// metric returns the value of one time series.
func (s *stage) metric(ctx context.Context, name string) float64 {
	_, body, err := s.get(ctx, "/metrics")
	harness.Do(err)
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return harness.Must(strconv.ParseFloat(strings.TrimSpace(value), 64))
		}
	}
	harness.Fail("no metric %s", name)
	return 0
}

// memory returns the resident set of countersignd, in bytes: VmRSS of proc_pid_status(5).
func (s *stage) memory() int {
	raw := string(harness.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))))
	_, after, _ := strings.Cut(raw, "VmRSS:")
	kB, _, _ := strings.Cut(strings.TrimSpace(after), " ")
	return harness.Must(strconv.Atoi(kB)) << 10
}

// watch remembers the highest value of a measure.
type watch struct {
	highest atomic.Int64
	end     chan struct{}
	ended   chan struct{}
}

const watchEvery = 20 * time.Millisecond

func newWatch(measure func() int) *watch {
	w := &watch{end: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			_ = harness.Try(func() { w.highest.Store(max(w.highest.Load(), int64(measure()))) }) // a daemon that ended is another check's
			select {
			case <-tick.C:
			case <-w.end:
				return
			}
		}
	}()
	return w
}

func (w *watch) most() int { return int(w.highest.Load()) }

func (w *watch) stop() {
	close(w.end)
	<-w.ended
}

// samples are authorizations.
type samples struct {
	times []time.Duration // of the two requests of each
	cpu   time.Duration   // of countersignd, for all
}

func (s *samples) add(more samples) {
	s.times = append(s.times, more.times...)
	s.cpu += more.cpu
}

// compare compares what an honest device finds without and with strangers.
func compare(r *harness.Report, without, with samples) {
	n := len(with.times)
	for _, c := range []struct {
		name string
		of   func(samples) time.Duration
	}{
		{"median", func(s samples) time.Duration { return quantile(s.times, 0.5) }},
		{"p99", func(s samples) time.Duration { return quantile(s.times, 0.99) }},
		{"processor time of countersignd for each", func(s samples) time.Duration { return s.cpu / time.Duration(n) }},
	} {
		a, b := c.of(without), c.of(with)
		line := fmt.Sprintf("%s of %d authorizations: %.2f ms without, %.2f ms with strangers, ratio %.3f",
			c.name, n, ms(a), ms(b), float64(b)/float64(a))
		if testing.Short() {
			r.Say("%s (too few to judge)", line)
			continue
		}
		r.Check(float64(b) <= mostRatio*float64(a), "%s (at most %.1f)", line, mostRatio)
	}
}

// tick is the unit of processor times in proc_pid_stat(5): USER_HZ is 100 on every Linux that Go supports.
const tick = 10 * time.Millisecond

// cpu returns the processor time that countersignd has used.
func (s *stage) cpu() time.Duration {
	raw := string(harness.Must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID()))))
	fields := strings.Fields(raw[strings.LastIndexByte(raw, ')')+1:])
	return time.Duration(harness.Must(strconv.Atoi(fields[11]))+harness.Must(strconv.Atoi(fields[12]))) * tick
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func quantile(all []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
