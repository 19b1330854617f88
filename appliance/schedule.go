package appliance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
)

// KeysDue tells when each key is to be rotated.
func (a *Appliance) KeysDue() []keyplan.Due { return a.schedule.Due(a.keys.Ring(), a.now()) }

// KeepsSchedule tells whether the appliance rotates keys by itself.
func (a *Appliance) KeepsSchedule() bool { return a.schedule.Auto }

// ErrKeysDue: keys are to be rotated. Nothing fails by that yet.
var ErrKeysDue = errors.New("keys are to be rotated")

// ErrNoneInUse: a key that requests need has no version in use.
var ErrNoneInUse = errors.New("none is in use")

// KeysInUse names the keys that requests need and that have no version in use, with an
// error that wraps [ErrNoneInUse], or is nil.
func (a *Appliance) KeysInUse(context.Context) error {
	var without []string
	for _, name := range keyring.Needed {
		if _, err := a.keys.Current(name, a.now()); err != nil {
			without = append(without, name)
		}
	}
	if without != nil {
		return fmt.Errorf("%s: %w", strings.Join(without, ", "), ErrNoneInUse)
	}
	if k, err := a.keys.PairwiseKey(); err != nil || !k.OnToken {
		return fmt.Errorf("%s, which makes the pairwise ids, is not on the token: %w", keyring.Label(k.Name, k.Version), ErrNoneInUse)
	}
	return nil
}

// KeysReady names the keys that are due or overdue, or is nil.
func (a *Appliance) KeysReady(context.Context) error {
	var words []string
	for _, d := range a.KeysDue() {
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
	return fmt.Errorf("%w: %s", ErrKeysDue, strings.Join(words, ", "))
}

// keepSchedule takes the steps whose time has come, where the schedule says so. What
// fails is tried again with the next look, and said once.
func (a *Appliance) keepSchedule(ctx context.Context) {
	if !a.schedule.Auto {
		return
	}
	var problems []string
	for _, d := range a.KeysDue() {
		if d.Name == keyring.Root || d.Standing != keyplan.DueNow && d.Standing != keyplan.Overdue {
			continue
		}
		for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate} {
			if err := a.scheduled(ctx, keyplan.Step{Verb: verb, Name: d.Name}); err != nil {
				problems = append(problems, err.Error())
				break
			}
		}
	}
	for _, v := range a.Keys() {
		if end := v.OverlapEnd; v.Name == keyring.Root || end.IsZero() || a.now().Before(end) {
			continue
		}
		if err := a.scheduled(ctx, keyplan.Step{Verb: keyplan.Retire, Name: v.Name, Version: v.Version}); err != nil {
			problems = append(problems, err.Error())
		}
	}
	if said := strings.Join(problems, "; "); said != a.scheduleProblem {
		if a.scheduleProblem = said; said != "" {
			a.log.Error("the schedule of the keys could not be kept", "error", said)
		}
	}
}

func (a *Appliance) scheduled(ctx context.Context, s keyplan.Step) error {
	_, err := a.ChangeKey(ctx, s)
	if err == nil {
		a.log.Info("key step taken by schedule", "verb", string(s.Verb), "key", s.Name)
	}
	return err
}

// keyMetrics reads its figures off the keyring when it is asked. Labels are the names of
// keys, a closed set.
type keyMetrics struct {
	*Appliance
	due, version, left *prometheus.Desc
}

func newKeyMetrics(a *Appliance) *keyMetrics {
	return &keyMetrics{
		Appliance: a,
		due:       prometheus.NewDesc("countersign_key_due_seconds", "Time until a key is to be rotated, negative when it is overdue.", []string{"key"}, nil),
		version:   prometheus.NewDesc("countersign_key_version", "Version in use, 0 when there is none.", []string{"key"}, nil),
		left:      prometheus.NewDesc("countersign_client_records_left", "Client records that are to be brought to the mac and wrap keys in use.", nil, nil),
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
	for _, d := range m.KeysDue() {
		out <- prometheus.MustNewConstMetric(m.version, prometheus.GaugeValue, float64(d.Version), d.Name)
		if !d.At.IsZero() {
			out <- prometheus.MustNewConstMetric(m.due, prometheus.GaugeValue, d.At.Sub(m.now()).Seconds(), d.Name)
		}
	}
	out <- prometheus.MustNewConstMetric(m.left, prometheus.GaugeValue, float64(m.Renewal().Left))
}
