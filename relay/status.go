package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/durable"
	"countersign/protocol"
	"countersign/relay/uplink"
)

// Metrics counts what a relay does.
type Metrics struct {
	messages  *prometheus.CounterVec // by kind: m1, m3
	decisions *prometheus.CounterVec // by result
	acts      *prometheus.CounterVec // by result
	errors    *prometheus.CounterVec // MEs, by code
	links     prometheus.Gauge
}

// NewMetrics returns the collectors and registers them unless registry is nil.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		opts := prometheus.CounterOpts{Namespace: "countersign", Subsystem: "relay", Name: name, Help: help}
		return prometheus.NewCounterVec(opts, []string{label})
	}
	m := &Metrics{
		messages:  counter("messages_total", "Messages of phones that were forwarded.", "kind"),
		decisions: counter("decisions_total", "Answers to M3; refused are decisions that did not verify.", "result"),
		acts:      counter("acts_total", "Acts; repeated are approvals that the device had acted on before.", "result"),
		errors:    counter("link_errors_total", "Link errors sent to phones.", "code"),
		links: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "countersign", Subsystem: "relay", Name: "links", Help: "Near-field links in use.",
		}),
	}
	m.begin()
	if registry != nil {
		registry.MustRegister(m.messages, m.decisions, m.acts, m.errors, m.links)
	}
	return m
}

// Kinds of messages: values of a label.
const (
	kindM1 = "m1"
	kindM3 = "m3"
)

// What a device did with an approval: values of a label.
const (
	actDone        = "done"
	actFailed      = "failed"
	actRepeated    = "repeated"
	actUnconfirmed = "unconfirmed"
)

// resultNone labels an approval without a decision: of a dry run or of a question about a serial.
const resultNone = "none"

// begin sets every series to 0.
func (m *Metrics) begin() {
	for vec, labels := range map[*prometheus.CounterVec][]string{
		m.messages: {kindM1, kindM3}, m.acts: {actDone, actFailed, actRepeated, actUnconfirmed},
		m.decisions: {
			protocol.ResultApproved.String(), protocol.ResultDenied.String(), protocol.ResultPending.String(),
			protocol.ResultRetry.String(), resultRefused, resultNone,
		},
	} {
		for _, label := range labels {
			vec.WithLabelValues(label)
		}
	}
	for _, code := range protocol.Codes() {
		m.errors.WithLabelValues(code.String())
	}
}

// Status is the state of a device, for support.
type Status struct {
	Running          bool      `json:"running"`
	Name             string    `json:"name"`
	Device           string    `json:"device"` // id, 16 hexadecimal digits
	Appliance        string    `json:"appliance,omitempty"`
	Reachable        bool      `json:"reachable"`
	Problem          string    `json:"problem,omitempty"` // why the device cannot authorize
	CertificateUntil time.Time `json:"certificate_until"`
	Links            []string  `json:"links,omitempty"`
	Last             *Last     `json:"last,omitempty"`
	// SeenAt is when the relay wrote its status last: on each change, and each minute. Zero: it never ran.
	SeenAt    time.Time  `json:"seen_at,omitzero"`
	StoppedAt *time.Time `json:"stopped_at,omitempty"` // nil: it runs, or was killed
	isRecent  bool       // written by a release that writes SeenAt each minute
}

// Healthy reports whether the device runs and can authorize.
func (s Status) Healthy() bool { return s.Running && s.Reachable && s.Problem == "" }

// Last is the last result.
type Last struct {
	At          time.Time        `json:"at"`
	Result      string           `json:"result"`
	Code        protocol.Code    `json:"code,omitempty"`
	Transaction string           `json:"transaction,omitempty"`
	Service     protocol.Service `json:"service,omitempty"`
}

func (r result) last() *Last {
	l := &Last{Result: r.Result, Code: r.Code}
	if r.Decision != nil {
		l.Transaction, l.Service = r.Decision.Transaction.String(), r.Decision.Service
	}
	if r.Decision != nil && r.Decision.Result == protocol.ResultApproved && !r.Performed {
		l.Result = resultFailed
	}
	return l
}

// String returns one line to read out over the phone.
func (s Status) String() string {
	parts := []string{fmt.Sprintf("%s (device %s)", s.Name, s.Device)}
	switch {
	case !s.Running:
		parts = append(parts, s.end())
	case s.Healthy():
		parts = append(parts, "running, appliance reachable")
	case s.Reachable:
		parts = append(parts, "running, NOT able to authorize")
	default:
		parts = append(parts, "running, appliance NOT reachable")
	}
	if s.Problem != "" {
		parts = append(parts, s.Problem)
	}
	parts = append(parts, "certificate until "+s.CertificateUntil.UTC().Format("2006-01-02 15:04 UTC"))
	return strings.Join(append(parts, s.Last.String()), "; ")
}

// timeLayout is the form of times in lines for people.
const timeLayout = "2006-01-02 15:04:05 UTC"

// end returns since when the relay has not been running.
func (s Status) end() string {
	switch {
	case s.StoppedAt != nil:
		return "not running since " + s.StoppedAt.UTC().Format(timeLayout)
	case s.SeenAt.IsZero():
		return "not running, and never ran"
	}
	return "not running, last seen " + s.SeenAt.UTC().Format(timeLayout)
}

func (l *Last) String() string {
	if l == nil {
		return "no result yet"
	}
	text := fmt.Sprintf("last %s at %s", l.Result, l.At.UTC().Format(timeLayout))
	if l.Service != 0 {
		text += fmt.Sprintf(", service %v", l.Service)
	}
	if l.Code != 0 {
		text += fmt.Sprintf(", code %d (%v)", uint8(l.Code), l.Code)
	}
	return text
}

const statusName = "status.json"

// ReadStatus reads the status of the device in a state directory, running or not:
// [uplink.ErrNotEnrolled] if there is none.
func ReadStatus(dir string) (Status, error) {
	state, err := uplink.Open(dir)
	if err != nil {
		return Status{}, err
	}
	name := filepath.Join(dir, statusName)
	s, err := lastStatus(name)
	if err != nil {
		return Status{}, fmt.Errorf("reading status: %w", err)
	}
	identity := state.Identity()
	s.Name, s.Device, s.CertificateUntil = identity.Name, identity.ID.String(), identity.NotAfter
	if s.Running, err = uplink.InUse(dir); err != nil {
		return Status{}, fmt.Errorf("reading status: %w", err)
	}
	switch {
	case !s.Running:
		s.Reachable, s.Problem, s.Links = false, "", nil // of the last run
	case s.isRecent && time.Since(s.SeenAt) > quietPeriod:
		s.Reachable, s.Problem = false, fmt.Sprintf("the relay has written no status since %s: it hangs, or it cannot write %s",
			s.SeenAt.UTC().Format(timeLayout), name)
	}
	return s, nil
}

// lastStatus reads the file of a running relay or of its last run; without one it returns no error.
func lastStatus(name string) (s Status, err error) {
	raw, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	s.isRecent = !s.SeenAt.IsZero()
	if err == nil && !s.isRecent { // of an earlier release
		var file fs.FileInfo
		if file, err = os.Stat(name); err == nil {
			s.SeenAt = file.ModTime()
		}
	}
	return s, err
}

// statusFile has the status of the running relay. Each change replaces it.
type statusFile struct {
	relay *Relay
	mu    sync.Mutex // guards the following fields and the file
	last  *Last
	isEnd bool // Serve has ended
}

func newStatusFile(r *Relay) *statusFile {
	f := &statusFile{relay: r}
	if s, err := ReadStatus(r.config.StateDir); err == nil {
		f.last = s.Last
	}
	return f
}

// update writes the file; last is nil if the last result has not changed.
func (f *statusFile) update(last *Last) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last != nil {
		last.At = time.Now()
		f.last = last
	}
	if err := f.writeLocked(); err != nil {
		f.relay.log.Warn("writing status failed", "error", err)
	}
}

// keepPeriod is the time between statuses without a change, which show that the relay runs.
const keepPeriod = time.Minute

// quietPeriod is how long a running relay may be without a new status before it counts as hung.
const quietPeriod = 3 * keepPeriod

// keep writes the file each minute until ctx is over.
func (f *statusFile) keep(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, keepPeriod)
		f.update(nil)
	}
}

// stop writes the last status of this run.
func (f *statusFile) stop() {
	f.mu.Lock()
	f.isEnd = true
	f.mu.Unlock()
	f.update(nil)
}

func (f *statusFile) writeLocked() error {
	identity, now := f.relay.Identity(), time.Now()
	s := Status{
		Running: !f.isEnd, Name: identity.Name, Device: identity.ID.String(), Appliance: f.relay.config.URL,
		Reachable: f.relay.Reachable(), Problem: f.relay.Problem(),
		CertificateUntil: identity.NotAfter, Links: f.relay.Links(), Last: f.last, SeenAt: now,
	}
	if f.isEnd {
		s.StoppedAt = &now
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	name := filepath.Join(f.relay.config.StateDir, statusName)
	return durable.Publish(name, append(raw, '\n'), 0o600)
}
