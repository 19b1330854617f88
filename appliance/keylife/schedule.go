package keylife

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/store/audit"
)

// Due returns when each key is due for rotation.
func (k *Service) Due() []keyplan.Due { return k.schedule.Due(k.keys.Ring(), k.now()) }

// Auto reports whether the appliance rotates keys by itself.
func (k *Service) Auto() bool { return k.schedule.Auto }

// ErrDue: keys are due for rotation. Nothing fails because of it yet.
var ErrDue = errors.New("keys are due for rotation")

// ErrNoneInUse: a key that requests need has no version in use.
var ErrNoneInUse = errors.New("none is in use")

// CheckInUse returns an error that wraps [ErrNoneInUse] and names the keys that requests need and
// that have no version in use.
func (k *Service) CheckInUse(context.Context) error {
	var without []string
	for _, name := range keyring.Needed {
		if _, err := k.keys.Current(name, k.now()); err != nil {
			without = append(without, name)
		}
	}
	if without != nil {
		return fmt.Errorf("%s: %w", strings.Join(without, ", "), ErrNoneInUse)
	}
	if k, err := k.keys.PairwiseKey(); err != nil || !k.OnToken {
		return fmt.Errorf("%s, which makes the pairwise ids, is not on the token: %w", keyring.Label(k.Name, k.Version), ErrNoneInUse)
	}
	return nil
}

// CheckDue returns an error that names the keys that are due or overdue.
func (k *Service) CheckDue(context.Context) error {
	var words []string
	for _, d := range k.Due() {
		switch {
		case d.Version == 0:
			words = append(words, d.Name+": none is in use")
		case d.Standing == keyplan.DueNow || d.Standing == keyplan.Overdue:
			words = append(words, fmt.Sprintf("%s is %s (%s)", keyring.Label(d.Name, d.Version), d.Standing, d.At.UTC().Format(time.DateOnly)))
		}
	}
	if words == nil {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrDue, strings.Join(words, ", "))
}

// keepSchedule takes the steps that are due, if the schedule is automatic. It tries a failed step
// again at the next tick, and logs the failure once.
func (k *Service) keepSchedule(ctx context.Context) {
	if !k.schedule.Auto {
		return
	}
	var problems []string
	for _, d := range k.Due() {
		if d.Name == keyring.Root || d.Standing != keyplan.DueNow && d.Standing != keyplan.Overdue {
			continue
		}
		for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate} {
			if err := k.scheduled(ctx, keyplan.Step{Verb: verb, Name: d.Name}); err != nil {
				problems = append(problems, err.Error())
				break
			}
		}
	}
	for _, v := range k.List() {
		if end := v.OverlapEnd; v.Name == keyring.Root || end.IsZero() || k.now().Before(end) {
			continue
		}
		if err := k.scheduled(ctx, keyplan.Step{Verb: keyplan.Retire, Name: v.Name, Version: v.Version}); err != nil {
			problems = append(problems, err.Error())
		}
	}
	if said := strings.Join(problems, "; "); said != k.scheduleProblem {
		if k.scheduleProblem = said; said != "" {
			k.log.Error("the schedule of the keys could not be kept", "error", said)
		}
	}
}

func (k *Service) scheduled(ctx context.Context, s keyplan.Step) error {
	_, err := k.take(audit.By(ctx, audit.Schedule), s, always) // a schedule has no vote and asks for none
	return err
}

// keyMetrics reads its figures from the keys when it is collected. Labels are the names of keys,
// a closed set.
type keyMetrics struct {
	*Service
	due, version, left *prometheus.Desc
}

func newKeyMetrics(k *Service) *keyMetrics {
	return &keyMetrics{
		Service: k,
		due:     prometheus.NewDesc("countersign_key_due_seconds", "Time until a key is due for rotation, negative when it is overdue.", []string{"key"}, nil),
		version: prometheus.NewDesc("countersign_key_version", "Version in use, 0 when there is none.", []string{"key"}, nil),
		left:    prometheus.NewDesc("countersign_client_records_left", "Records that are not yet under the mac and wrap keys in use.", nil, nil),
	}
}

// Describe implements [prometheus.Collector].
func (m *keyMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.due
	out <- m.version
	out <- m.left
}

// Collect implements [prometheus.Collector].
func (m *keyMetrics) Collect(out chan<- prometheus.Metric) {
	for _, d := range m.Due() {
		out <- prometheus.MustNewConstMetric(m.version, prometheus.GaugeValue, float64(d.Version), d.Name)
		if !d.At.IsZero() {
			out <- prometheus.MustNewConstMetric(m.due, prometheus.GaugeValue, d.At.Sub(m.now()).Seconds(), d.Name)
		}
	}
	out <- prometheus.MustNewConstMetric(m.left, prometheus.GaugeValue, float64(m.Renewal().Left))
}

// ErrStrange: keys on the token are unknown to the registry or differ from it.
var ErrStrange = errors.New("keys on the token differ from the registry")

// strangeKeys are the bad findings of the last comparison.
type strangeKeys struct {
	mu    sync.Mutex
	found []Finding // guarded by mu
}

// Attest compares every object on the token with the registry. The metric and
// [Service.CheckAttested] show the findings until the next comparison.
func (k *Service) Attest(ctx context.Context) ([]Finding, error) {
	k.steps.Lock() // a key that was just made has no row yet
	defer k.steps.Unlock()
	found, err := Attest(ctx, k.keys)
	if err != nil {
		return nil, err
	}
	var strange []Finding
	for _, f := range found {
		if !f.Good() {
			strange = append(strange, f)
		}
	}
	k.strange.mu.Lock()
	k.strange.found = strange
	k.strange.mu.Unlock()
	k.metric.Set(float64(len(strange)))
	return found, nil
}

// CheckAttested returns [ErrStrange] if the last comparison found a strange key.
func (k *Service) CheckAttested(context.Context) error {
	k.strange.mu.Lock()
	defer k.strange.mu.Unlock()
	strange := k.strange.found
	if len(strange) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d, %q first; see countersignctl key attest", ErrStrange, len(strange), strange[0].Name)
}

// attestDaily compares once a day, and reports bad findings in the log, in a metric and as a
// warning in /readyz.
func (k *Service) attestDaily(ctx context.Context) {
	if k.now().Before(k.attested.Add(AttestPeriod)) {
		return
	}
	found, err := k.Attest(ctx)
	if err != nil {
		k.log.Warn("the keys on the token could not be compared with the registry", "error", err)
		k.attested = k.now().Add(time.Hour - AttestPeriod)
		return
	}
	k.attested = k.now()
	for _, f := range found {
		if !f.Good() {
			k.log.Error("key on the token is not as the registry has it",
				"key", f.Name, "token", f.Token, "id", fmt.Sprintf("%x", f.ID), "unknown", f.Unknown, "drift", f.Drift)
		}
	}
}
