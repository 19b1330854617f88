package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/hsm/wire"
	"countersign/hsm/worker"
)

// gated is a token whose MAC over "wait" blocks until the gate opens, and that may sign
// with another key than the requested one.
type gated struct {
	*memory.Token
	entered chan struct{}
	gate    chan struct{}
	liesBy  atomic.Pointer[hsm.KeyID]
	signed  atomic.Int64
}

func (g *gated) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	g.signed.Add(1)
	if other := g.liesBy.Load(); other != nil {
		key = *other
	}
	return g.Token.Sign(ctx, key, alg, input)
}

func (g *gated) Dead() <-chan struct{} { return nil }

func (g *gated) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if string(data) == "wait" {
		g.entered <- struct{}{}
		<-g.gate
	}
	return g.Token.MAC(ctx, key, data)
}

// newGated connects to a token in this process. The process of the connection does
// nothing.
func newGated(t *testing.T) (*conn, *gated, hsm.KeyID, *wire.Socket) {
	t.Helper()
	ours, file, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := ours.Tick(tick); err != nil {
		t.Fatal(err)
	}
	theirs, token := wire.NewSocket(fd), &gated{Token: memory.New(), entered: make(chan struct{}, 8), gate: make(chan struct{})}
	k, err := token.Generate(t.Context(), hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- worker.Serve(theirs, token, 4) }()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	proc := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // it is killed
		close(proc.exited)
	}()
	l := newConn(ours, proc)
	t.Cleanup(func() {
		proc.kill()
		<-l.done // the reader notices the end of the process, or it was lost before
		_ = ours.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		_ = theirs.Close()
	})
	// The end of a process closes its socket.
	go func() {
		<-proc.exited
		theirs.Shutdown()
	}()
	return l, token, k.ID, theirs
}

func (l *conn) mac(ctx context.Context, key hsm.KeyID, data string) ([]byte, error) {
	const limit = 5 * time.Second
	q := wire.MAC(key, []byte(data))
	q.Deadline = wire.Now() + int64(limit)
	end := time.Now().Add(limit)
	p, err := l.do(ctx, q, limits{hedge: end, deadline: end, overdue: end.Add(grace)})
	return p.Payload, err
}

func (l *conn) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) == 0
}

// A caller that gives up does not disturb the others, and its answer is read all the same.
func TestReaderGivesUp(t *testing.T) {
	l, token, key, _ := newGated(t)
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := l.mac(ctx, key, "wait")
		first <- err
	}()
	<-token.entered
	go func() {
		_, err := l.mac(t.Context(), key, "wait")
		second <- err
	}()
	<-token.entered
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v, want context.Canceled", err)
	}
	if _, err := l.mac(t.Context(), key, "now"); err != nil {
		t.Errorf("another call meanwhile: %v", err)
	}
	close(token.gate)
	if err := <-second; err != nil {
		t.Errorf("second: %v", err)
	}
	eventually(t, "the abandoned answer is read", time.Second, l.idle)
	if l.lost() {
		t.Errorf("link is lost: %v", l.failure())
	}
}

// The only caller gives up. Its answer is read, so the worker does not count as hung.
func TestAbandonedAnswerIsRead(t *testing.T) {
	l, token, key, _ := newGated(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := l.mac(ctx, key, "wait")
		ended <- err
	}()
	<-token.entered
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	close(token.gate)
	eventually(t, "the answer is read", time.Second, l.idle)
	if _, err := l.mac(t.Context(), key, "now"); err != nil || l.lost() {
		t.Errorf("next call: %v", err)
	}
}

// Every waiting call learns that the other side has ended.
func TestPeerEnds(t *testing.T) {
	l, token, key, theirs := newGated(t)
	ended := make(chan error, 4)
	for range cap(ended) {
		go func() {
			_, err := l.mac(t.Context(), key, "wait")
			ended <- err
		}()
	}
	for range cap(ended) {
		<-token.entered
	}
	theirs.Shutdown()
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, errDied) {
			t.Errorf("%v, want errDied", err)
		}
	}
	close(token.gate)
}

// Every call gets its own answer, even if others give up.
func TestEachItsOwnAnswer(t *testing.T) {
	l, token, key, _ := newGated(t)
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := range 200 {
				text := fmt.Sprint(g, "/", i)
				patience := time.Hour
				if g%2 == 1 {
					patience = time.Duration(g) * 20 * time.Microsecond
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				got, err := l.mac(ctx, key, text)
				cancel()
				if errors.Is(err, context.DeadlineExceeded) && g%2 == 1 {
					continue
				}
				want, _ := token.Token.MAC(t.Context(), key, []byte(text))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("MAC(%s) = %x, %v; want %x", text, got, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "all answers are read", time.Second, l.idle)
	if l.lost() {
		t.Errorf("link is lost: %v", l.failure())
	}
}
