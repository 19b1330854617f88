// Package faults breaks the HSM of a running appliance in every known way while phones
// authorize. It checks the answers and their times, every signature that left, decisions,
// audit records and acts by serial, and the daemon's goroutines, threads and descriptors.
package faults

import (
	"context"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
)

// scenes are the ways in which an HSM breaks.
var scenes = []struct {
	name string
	play func(context.Context, *stage)
}{
	{"hang-one", hangOne},
	{"hang-all", hangAll},
	{"hsm-gone", hsmGone},
	{"garbage-volume", volume},
	{"garbage", garbage},
	{"sessions-die", sessionsDie},
	{"login-lost", loginLost},
	{"wrong-pin", wrongPIN},
	{"segfault", segfault},
	{"busy", busy},
	{"slow", slow},
	{"overload", overload},
	{"restart-storm", restartStorm},
}

// Values of BREAK.
const (
	breakRelease = "release" // a bad signature is let through behind the appliance
	breakRetry   = "retry"   // a fault strikes the internal retry too
	breakGuard   = "guard"   // the guard against trying a refused PIN again is removed
	breakAct     = "act"     // the relay acts twice
)

func TestMain(m *testing.M) {
	s := harness.Suite{Name: "hsm-faults", Breaks: []string{breakRelease, breakRetry, breakGuard, breakAct}}
	for _, scene := range scenes {
		s.Sections = append(s.Sections, scene.name)
	}
	harness.Main(m, s)
}

// sceneLimit bounds one scene, so that a product that hangs fails the test.
const sceneLimit = time.Minute

// TestFaults plays each scene with an appliance of its own, and busy alone under
// `go test -short`.
func TestFaults(t *testing.T) {
	for _, s := range scenes {
		if harness.Brief() && s.name != "busy" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			harness.Run(t, func(r *harness.Report) {
				r.Every = true
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), sceneLimit)
				defer cancel()
				st := open(ctx, r)
				err := harness.Try(func() { s.play(ctx, st) })
				if err != nil {
					st.sayLog()
				}
				st.close()
				r.Say("%s took %v", s.name, time.Since(begun).Round(100*time.Millisecond))
				harness.Do(err)
			})
		})
	}
}

func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Short: true, Break: breakRelease, Args: []string{"-only", "busy"}, Exit: 1, Line: " failed"},
		harness.Broken{Break: "nonsense", Exit: 2},
	)
}

func TestDoubles(t *testing.T) {
	one, two := protocol.TransactionID{1}, protocol.TransactionID{2}
	a, b := protocol.Serial{1}, protocol.Serial{2}
	for name, c := range map[string]struct {
		approved []approval
		twice    int
		forRelay int
	}{
		"none":                {nil, 0, 0},
		"two serials":         {[]approval{{serial: a, transaction: one, acts: true}, {serial: b, transaction: two}}, 0, 1},
		"one told again":      {[]approval{{serial: a, transaction: one}, {serial: a, transaction: one}}, 0, 0},
		"two for one serial":  {[]approval{{serial: a, transaction: one}, {serial: a, transaction: two}}, 1, 0},
		"both through relays": {[]approval{{serial: a, transaction: one, acts: true}, {serial: a, transaction: two, acts: true}}, 1, 2},
	} {
		if twice, forRelay := doubles(c.approved); twice != c.twice || len(forRelay) != c.forRelay {
			t.Errorf("%s: %d twice, relay %v", name, twice, forRelay)
		}
	}
}

func TestJudge(t *testing.T) {
	known := map[string]bool{"a": true, "b": true}
	for name, c := range map[string]struct {
		acts []string
		good bool
	}{
		"each once": {[]string{"b", "a"}, true},
		"twice":     {[]string{"a", "b", "a"}, false},
		"unknown":   {[]string{"a", "c"}, false},
	} {
		var acts []harness.Act
		for _, transaction := range c.acts {
			acts = append(acts, harness.Act{Transaction: transaction})
		}
		if err := judge(acts, known); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestJournal(t *testing.T) {
	at := time.Now().Add(-time.Minute)
	j := &journal{}
	for i := range 10 {
		j.add(exchange{begun: at.Add(time.Duration(i) * time.Second), took: time.Duration(i+1) * 100 * time.Millisecond})
	}
	if got := len(j.since(at.Add(3*time.Second), at.Add(5*time.Second))); got != 2 {
		t.Errorf("%d exchanges began in two seconds", got)
	}
	if got := len(j.touched(at.Add(8500 * time.Millisecond))); got != 2 {
		t.Errorf("%d exchanges ended after 8.5 s", got) // the one at 8 s took 0.9 s
	}
	all := j.since(at, time.Now())
	if quantile(all, 0) != 100*time.Millisecond || quantile(all, 0.5) != 600*time.Millisecond || quantile(all, 1) != time.Second || quantile(nil, 1) != 0 {
		t.Errorf("quantiles %v, %v, %v", quantile(all, 0), quantile(all, 0.5), quantile(all, 1))
	}
}

// because is what a line says of an error, nothing of none.
func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + line(err.Error())
}

// line is the beginning of the first line of a text.
func line(text string) string {
	const most = 200
	first, _, _ := strings.Cut(text, "\n")
	return first[:min(len(first), most)]
}

// within is a check of a time.
func (s *stage) within(limit, took time.Duration, what string) {
	s.Check(took <= limit, "%s: %v (at most %v)", what, took.Round(time.Millisecond), limit)
}
