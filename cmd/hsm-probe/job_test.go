package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/cmd/hsm-probe/internal/probe"
	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/wire"
)

// The test binary is its own child.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == childArg {
		os.Exit(child(jobName(os.Args[2]), os.Stderr))
	}
	os.Exit(m.Run())
}

// jobOn returns a job on a fresh SoftHSM token.
func jobOn(t *testing.T, s hsmtest.SoftHSM, name jobName) job {
	t.Helper()
	s.Setenv(t)
	return job{
		name: name, stderr: os.Stderr, order: probe.Order{Quick: true},
		token: wire.Config{Module: s.Module, TokenLabel: s.Label, PIN: hsm.PIN(s.PIN)},
	}
}

func verdicts(s report.Sheet) map[string]report.Verdict {
	all := map[string]report.Verdict{}
	for _, c := range s.Capabilities {
		all[c.Name] = c.Verdict
	}
	return all
}

func answers(s report.Sheet) map[string]string {
	all := map[string]string{}
	for _, f := range s.Behaviour {
		all[f.Name] = f.Answer
	}
	return all
}

// The probe finds the known properties of SoftHSM 2.6.
func TestProbe(t *testing.T) {
	token := hsmtest.NewSoftHSM(t)
	e := jobOn(t, token, probeJob)
	e.order.WrongPIN = true
	token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "of another")
	before := token.Tool(t, "-O")
	var s report.Sheet
	start := time.Now()
	if err := e.run(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 30*time.Second { // 5 s on a machine that does nothing else
		t.Errorf("a quick probe took %s", took)
	}
	if after := token.Tool(t, "-O"); after != before {
		t.Errorf("the token was\n%s\nand is\n%s", before, after)
	}
	found := verdicts(s)
	for name, want := range map[string]report.Verdict{"sign-p256-sha256": report.NotListed, "wrap-rsa-aes": report.NotListed} {
		if found[name] != want {
			t.Errorf("%s is %q, want %q", name, found[name], want)
		}
		delete(found, name)
	}
	for name, v := range found {
		if v != report.Works {
			t.Errorf("%s is %q", name, v)
		}
	}
	for name, want := range map[string]string{
		"ec_point_encoding": "OCTET STRING", "duplicate_id": "accepted", "allowed_mechanisms": "enforced", "unwrap_template": "enforced",
		"copyable_false": "enforced", "session_objects_seen_by_other_sessions": "yes", "login_counts_for_all_sessions": "yes",
		"wrong_pin_after_login": "refused, pkcs11: 0x100: CKR_USER_ALREADY_LOGGED_IN", "measured_keys": "token objects",
	} {
		if got := answers(s)[name]; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if len(s.Missing) > 0 || len(s.Costs) != 5 || string(e.token.PIN) != strings.Repeat("\x00", len(token.PIN)) {
		t.Errorf("missing %q, %d costs, PIN erased: %v", s.Missing, len(s.Costs), e.token.PIN)
	}
	checkThroughput(t, s)
}

func checkThroughput(t *testing.T, s report.Sheet) {
	t.Helper()
	if len(s.Throughput) != 2 || s.Settings == nil || s.Settings.Workers < 2 || s.Settings.Sessions < 1 {
		t.Fatalf("%d curves, settings %+v", len(s.Throughput), s.Settings)
	}
	for _, c := range s.Throughput {
		knee := c.At(c.Knee)
		if knee.Rate <= 0 || knee.P50 <= 0 || knee.P99 < knee.P50 || knee.Max < knee.P99 || knee.CPU <= 0 {
			t.Errorf("%s: knee %d, %+v", c.Operation, c.Knee, knee)
		}
	}
}

// The report names a required mechanism that the module lacks. SoftHSM misreads the first
// name of a list of exclusions, hence the comma.
func TestProbeMissing(t *testing.T) {
	token := hsmtest.NewSoftHSM(t)
	conf, err := os.ReadFile(token.Conf)
	if err == nil {
		err = os.WriteFile(token.Conf, append(conf, "slots.mechanisms = -,CKM_ECDH1_DERIVE,CKM_EDDSA\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var s report.Sheet
	if err := jobOn(t, token, probeJob).run(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if want := []string{"CKM_ECDH1_DERIVE (derive-p256), needed for opening authorization requests"}; !slices.Equal(s.Missing, want) {
		t.Errorf("missing %q, want %q", s.Missing, want)
	}
	if found := verdicts(s); found["derive-p256"] != report.NotListed || found["sign-ed25519"] != report.NotListed || found["sign-p256"] != report.Works {
		t.Errorf("%v", found)
	}
}

// The objects of an interrupted job are removed, and foreign objects stay.
func TestClean(t *testing.T) {
	token := hsmtest.NewSoftHSM(t)
	e := jobOn(t, token, cleanJob)
	token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "of another")
	before := token.Tool(t, "-O")
	token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", report.Label+"1")
	var c report.Cleaned
	if err := e.run(t.Context(), &c); err != nil || c.Removed != 2 {
		t.Errorf("removed %d, %v; want the two halves of one pair", c.Removed, err)
	}
	if after := token.Tool(t, "-O"); after != before {
		t.Errorf("the token was\n%s\nand is\n%s", before, after)
	}
}

// A job that is interrupted removes its keys before run returns.
func TestInterrupted(t *testing.T) {
	token := hsmtest.NewSoftHSM(t)
	e := jobOn(t, token, loopJob)
	e.order = probe.Order{Time: time.Minute, Sessions: []int{1}}
	objects := func() int {
		found, err := filepath.Glob(filepath.Join(filepath.Dir(token.Conf), "tokens", "*", "*.object"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	before := objects()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.run(ctx, new(report.Raw)) }()
	for deadline := time.Now().Add(30 * time.Second); objects() == before; {
		if time.Now().After(deadline) {
			t.Fatal("no keys were made")
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	if after := objects(); after != before {
		t.Errorf("%d files of objects, %d before", after, before)
	}
}

func TestSlots(t *testing.T) {
	token := hsmtest.NewSoftHSM(t)
	e := jobOn(t, token, slotsJob)
	e.token = wire.Config{Module: token.Module}
	var m report.Module
	if err := e.run(t.Context(), &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Tokens) != 2 || m.Tokens[0].Label != token.Label || m.Library.Version != "2.6" {
		t.Errorf("%+v", m)
	}
}

func TestRefusals(t *testing.T) {
	token := hsmtest.NewSoftHSM(t)
	for name, c := range map[string]struct {
		change func(*job)
		want   error
	}{
		"PIN":    {func(e *job) { e.token.PIN = hsm.PIN("wrong-canary") }, hsm.ErrPIN},
		"token":  {func(e *job) { e.token.TokenLabel = "another" }, hsm.ErrUnavailable},
		"module": {func(e *job) { e.token.Module = "/nonexistent.so" }, hsm.ErrUnavailable},
		"binary": {func(e *job) { e.binary = "/nonexistent" }, hsm.ErrUnavailable},
		"exits":  {func(e *job) { e.binary = "/bin/true" }, hsm.ErrUnavailable},
		"job":    {func(e *job) { e.name = "dance" }, hsm.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			e := jobOn(t, token, probeJob)
			c.change(&e)
			err := e.run(t.Context(), new(report.Sheet))
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("the PIN is in the error: %v", err)
			}
		})
	}
}
