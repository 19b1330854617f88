package measure

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	"countersign/hsm/memory"
)

func TestOperations(t *testing.T) {
	g, err := New(t.Context(), memory.New())
	if err != nil {
		t.Fatal(err)
	}
	both, check, err := g.Verified(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(context.Context) error{"verified": both, "check": check}
	for _, op := range report.Operations {
		calls[op] = g.Operation(op)
	}
	for name, call := range calls {
		s, err := Measure(t.Context(), call, 3, 20*time.Millisecond)
		if err != nil || s.Rate <= 0 || s.P50 <= 0 || s.Max < s.P99 || s.P99 < s.P90 || s.P90 < s.P50 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

// The processor time of a child counts as soon as it is used.
func TestChildrenCount(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	if !slices.Contains(children(), cmd.Process.Pid) {
		t.Skip("this kernel does not list children")
	}
	before := cpuTime() - cpuOf(os.Getpid())
	for deadline := time.Now().Add(10 * time.Second); cpuTime()-cpuOf(os.Getpid()) < before+50*time.Millisecond; {
		if time.Now().After(deadline) {
			t.Fatal("50 ms of a busy child were not counted in 10 s")
		}
	}
}

// A measurement ends with the first error of any caller.
func TestMeasureFails(t *testing.T) {
	var n atomic.Int64
	_, err := Measure(t.Context(), func(context.Context) error {
		if n.Add(1) > 50 {
			return hsm.ErrUnavailable
		}
		return nil
	}, 4, time.Minute)
	if !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

// A token that signs wrongly has no speed.
func TestWrongSignature(t *testing.T) {
	g, err := New(t.Context(), liar{memory.New()})
	if err != nil {
		t.Fatal(err)
	}
	both, check, err := g.Verified(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := both(t.Context()); !errors.Is(err, errSignature) {
		t.Errorf("%v, want errSignature", err)
	}
	if err := check(t.Context()); !errors.Is(err, errSignature) {
		t.Errorf("%v, want errSignature", err)
	}
}

// liar flips a bit of each signature.
type liar struct{ hsm.Token }

func (l liar) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, digest []byte) ([]byte, error) {
	sig, err := l.Token.Sign(ctx, key, alg, digest)
	if err == nil {
		sig[40] ^= 1
	}
	return sig, err
}
