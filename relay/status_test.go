package relay

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
	"countersign/relay/uplink"
)

// logBuffer keeps a log, which a relay writes while a test reads it.
type logBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

// count returns the number of lines that have every word.
func (b *logBuffer) count(words ...string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.all.String()) {
		has := true
		for _, w := range words {
			has = has && strings.Contains(line, w)
		}
		if has {
			n++
		}
	}
	return n
}

func statusOf(t *testing.T, dir string) Status {
	t.Helper()
	s, err := ReadStatus(dir)
	must(t, err)
	return s
}

// TestRefusedDevice: a device that the appliance refuses says so before any phone comes, and until it is served again.
func TestRefusedDevice(t *testing.T) {
	f, c := enrolled(t)
	log := &logBuffer{}
	c.Log = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Info})
	c.AskEvery = 5 * time.Millisecond
	g := start(t, f, c)
	eventually(t, "it is served", func() bool { s := statusOf(t, g.dir); return s.Reachable && s.Problem == "" })

	f.set(func() {
		f.fail["/v1/device"] = func(w http.ResponseWriter, _ *http.Request) { refuse(w, protocol.CodeDevice) }
	})
	eventually(t, "the status says that it is refused", func() bool { return statusOf(t, g.dir).Problem != "" })
	asked := f.count("/v1/device")
	eventually(t, "it was asked again", func() bool { return f.count("/v1/device") > asked+3 })
	s := statusOf(t, g.dir)
	if text := s.String(); !s.Running || !s.Reachable || !strings.Contains(text, "suspended or revoked") || !strings.Contains(text, "code 15") ||
		strings.Contains(text, "running, appliance reachable") {
		t.Errorf("status of a refused device: %s", text)
	}
	must(t, g.relay.client.RefreshTrust(t.Context())) // which needs no certificate
	if p := g.relay.ApplianceProblem(); !strings.Contains(p, "suspended or revoked") {
		t.Errorf("after a refresh of the trust the problem is %q", p)
	}
	if n := log.count("[WARN]", "suspended or revoked"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}

	f.set(func() { clear(f.fail) })
	eventually(t, "it is served again", func() bool { s := statusOf(t, g.dir); return s.Reachable && s.Problem == "" })
	eventually(t, "the log says so", func() bool { return log.count("[INFO]", "appliance serves this device again") == 1 })
}

// TestStatusOfAHungRelay: a relay that holds the state directory and writes no status is not taken for a healthy one.
func TestStatusOfAHungRelay(t *testing.T) {
	_, c := enrolled(t)
	release, err := uplink.Lock(c.StateDir)
	must(t, err)
	defer release()
	for since, healthy := range map[time.Duration]bool{keepPeriod: true, time.Hour: false} {
		raw, err := json.Marshal(Status{Running: true, Reachable: true, SeenAt: time.Now().Add(-since)})
		must(t, err)
		must(t, os.WriteFile(filepath.Join(c.StateDir, statusName), raw, 0o600))
		s := statusOf(t, c.StateDir)
		if text := s.String(); s.Healthy() != healthy || strings.Contains(text, "running, appliance reachable") != healthy ||
			strings.Contains(text, "no status since") == healthy {
			t.Errorf("%v after the last status: %s", since, text)
		}
	}
}

// TestOldAppliance: an appliance that does not know the question is no problem.
func TestOldAppliance(t *testing.T) {
	f, c := enrolled(t)
	f.fail["/v1/device"] = func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }
	c.AskEvery = 5 * time.Millisecond
	g := start(t, f, c)
	eventually(t, "it was asked", func() bool { return f.count("/v1/device") > 3 })
	if s := statusOf(t, g.dir); s.Problem != "" || !s.Reachable {
		t.Errorf("status is %s", s)
	}
}

// TestUnreachableWhileIdle: without a phone the device finds within AskEvery that the appliance is away, and is back.
func TestUnreachableWhileIdle(t *testing.T) {
	f, c := enrolled(t)
	c.AskEvery = 5 * time.Millisecond
	g := start(t, f, c)
	eventually(t, "it is served", func() bool { return statusOf(t, g.dir).Reachable })
	addr := f.server.Listener.Addr().String()
	f.stop()
	eventually(t, "it is away", func() bool {
		s := statusOf(t, g.dir)
		return !s.Reachable && strings.Contains(s.String(), "NOT reachable")
	})
	f.start(addr)
	eventually(t, "it is back", func() bool { s := statusOf(t, g.dir); return s.Reachable && s.Problem == "" })
}

// TestWrongClock: a device whose clock differs from the appliance's by hours or a day, either way, names the clock in
// its status and once in its log, and so does its enrolment.
func TestWrongClock(t *testing.T) {
	for _, ahead := range []time.Duration{2 * time.Hour, 24 * time.Hour, -3 * time.Hour, -25 * time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			f, c := enrolled(t)
			addr := f.server.Listener.Addr().String()
			f.stop()
			f.ahead = ahead
			f.start(addr)
			log := &logBuffer{}
			c.Log, c.AskEvery = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Info}), 5*time.Millisecond
			g := start(t, f, c)
			eventually(t, "the status names the clock", func() bool { return strings.Contains(statusOf(t, g.dir).String(), "set the clock") })
			if s := statusOf(t, g.dir); s.Healthy() || !strings.Contains(s.String(), "NOT reachable") || !strings.Contains(g.relay.ApplianceProblem(), "the clock of this device says") {
				t.Errorf("status is %s", s)
			}
			must(t, g.stop())
			if n := log.count("[WARN]", "does not serve this device", "set the clock"); n != 1 {
				t.Errorf("%d warnings that name the clock, want 1", n)
			}
			conf := uplink.EnrolConfig{URL: f.server.URL, CAFile: f.caFile, Code: f.code(), StateDir: t.TempDir()}
			calls := f.count("/v1/enrol/device")
			if _, err := uplink.Enrol(t.Context(), conf); !errors.Is(err, uplink.ErrClock) || !strings.Contains(err.Error(), "the clock of this device says") {
				t.Errorf("enrolled with %v", err)
			}
			if f.count("/v1/enrol/device") != calls {
				t.Error("the code was sent")
			}
		})
	}
}

// TestExpiredDevice: a device that was away for longer than its certificate lives says that it has to be enrolled again.
func TestExpiredDevice(t *testing.T) {
	f, c := enrolledFor(t, time.Second)
	until := statusOf(t, c.StateDir).CertificateUntil
	eventually(t, "the certificate has ended", func() bool { return time.Now().After(until) })
	log := &logBuffer{}
	c.Log, c.AskEvery = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Info}), 5*time.Millisecond
	g := start(t, f, c)
	eventually(t, "the status names the certificate", func() bool {
		return strings.Contains(statusOf(t, g.dir).String(), "this device's certificate ended at "+until.UTC().Format(time.RFC3339))
	})
	asked := f.count("/v1/trust")
	eventually(t, "the trust is refreshed", func() bool { return g.relay.client.RefreshTrust(t.Context()) != nil || f.count("/v1/trust") > asked })
	must(t, g.stop())
	if n := log.count("[WARN]", "does not serve this device", "--replace"); n != 1 {
		t.Errorf("%d warnings that name the certificate, want 1", n)
	}
}

// TestStatusOfTheLastRun: what an earlier run found is not shown as if it held now.
func TestStatusOfTheLastRun(t *testing.T) {
	f, c := enrolled(t)
	if s := statusOf(t, c.StateDir); s.Running || !strings.Contains(s.String(), "not running, and never ran") {
		t.Errorf("before the first run: %s", s)
	}
	before := time.Now()
	g := start(t, f, c)
	eventually(t, "it is served", func() bool { return statusOf(t, g.dir).Reachable })
	must(t, g.stop())
	s := statusOf(t, g.dir)
	if s.Running || s.Reachable || s.Problem != "" || s.Links != nil || s.StoppedAt == nil || s.StoppedAt.Before(before.Add(-time.Second)) ||
		!strings.Contains(s.String(), "not running since "+s.StoppedAt.UTC().Format("2006-01-02 15:04:05 UTC")) {
		t.Errorf("after it has stopped: %s, %+v", s, s)
	}

	// A file of an earlier release has no time of its own.
	must(t, os.WriteFile(filepath.Join(g.dir, statusName), []byte(`{"running":true,"reachable":true,"last":{"at":"2026-01-02T03:04:05Z","result":"approved"}}`), 0o600))
	if s := statusOf(t, g.dir); s.SeenAt.Before(before.Add(-time.Second)) || !strings.Contains(s.String(), "not running, last seen "+s.SeenAt.UTC().Format("2006-01-02 15:04")) {
		t.Errorf("after an earlier release: %s", s)
	}

	f.fail["/v1/trust"] = func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	f.fail["/v1/device"] = f.fail["/v1/trust"]
	g = start(t, f, c)
	s = statusOf(t, g.dir)
	if !s.Running || s.Reachable || !strings.Contains(s.String(), "no answer of the appliance yet") || s.StoppedAt != nil {
		t.Errorf("before an answer of the appliance: %s", s)
	}
	file := filepath.Join(g.dir, statusName)
	raw, err := os.ReadFile(file)
	must(t, err)
	must(t, g.stop())
	must(t, os.WriteFile(file, raw, 0o600)) // as if it had been killed
	if s = statusOf(t, g.dir); s.Running || s.StoppedAt != nil || !strings.Contains(s.String(), "not running, last seen "+s.SeenAt.UTC().Format("2006-01-02 15:04:05 UTC")) {
		t.Errorf("after it was killed: %s", s)
	}
}

// TestNothingHalfStarted: a relay that cannot open its order socket or its link names it, and leaves the directory free.
func TestNothingHalfStarted(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   error
		says   string
	}{
		"no directory":  {func(c *Config) { c.Orders = Orders{Socket: filepath.Join(c.StateDir, "none", "orders")} }, ErrOrderSocket, "none/orders"},
		"a file":        {func(c *Config) { c.Orders = Orders{Socket: filepath.Join(c.StateDir, "key.pem")} }, ErrOrderSocket, "key.pem"},
		"too long":      {func(c *Config) { c.Orders = Orders{Socket: "/tmp/" + strings.Repeat("x", 120)} }, ErrOrderSocket, "107 bytes"},
		"link in use":   {func(*Config) {}, ErrLink, "address already in use"},
		"no link there": {func(c *Config) { c.Links[0].Listen = "unix:" + filepath.Join(c.StateDir, "none", "link") }, ErrLink, "none/link"},
	} {
		t.Run(name, func(t *testing.T) {
			_, conf := enrolled(t)
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer func() { _ = taken.Close() }()
			conf.Links[0].Listen = "tcp:" + taken.Addr().String()
			c.change(&conf)
			if r, err := New(conf); err == nil || r != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("New returns %v, %v; want %v with %q", r, err, c.want, c.says)
			}
			if s := statusOf(t, conf.StateDir); s.Running || !strings.Contains(s.String(), "never ran") {
				t.Errorf("afterwards: %s", s)
			}
		})
	}
}
