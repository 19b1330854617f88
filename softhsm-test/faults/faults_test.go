// Package faults breaks the HSM of a running appliance in every known way while phones
// authorize. It checks the answers and their times, every signature that left, decisions,
// audit records and acts by serial, and the daemon's goroutines, threads and descriptors.
package faults

import (
	"context"
	"testing"
	"time"

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

// TestFaults plays each scene with an appliance of its own. Under -short and without -only it
// plays busy alone.
func TestFaults(t *testing.T) {
	for _, s := range scenes {
		if testing.Short() && !harness.Chosen() && s.name != "busy" {
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
		harness.Broken{Break: breakRelease, Args: []string{"-only", "busy"}, Exit: 1, Line: " passed, 1 failed"},
		harness.Broken{Break: "nonsense", Exit: 2},
	)
}
