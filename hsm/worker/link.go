package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// maxInFlight bounds the calls one worker is given, in its token or waiting.
const maxInFlight = 1024

// errDied: the worker ended before it answered; another one may.
var errDied = errors.New("worker died")

// link is the conversation with one worker. Requests are written by their
// callers, responses are read by one goroutine.
type link struct {
	conn    net.Conn
	proc    *process
	out     *wire.Writer
	timeout time.Duration // of ordinary calls
	started time.Time
	done    chan struct{} // closed when the link is lost

	late atomic.Bool  // somebody gave up waiting, no answer since
	load atomic.Int64 // calls in flight

	mu      sync.Mutex // guards what follows
	pending map[uint32]*call
	nextID  uint32
	wake    time.Time   // when the watchdog looks, zero for never
	dog     *time.Timer // fires at wake
	cause   error       // why the link was lost
}

// call is one request on its way. Its caller may give up; it stays pending
// then, so that a worker that never answers is noticed.
type call struct {
	overdue time.Time // when the worker is to be killed
	answer  chan wire.Response
}

func newLink(conn net.Conn, proc *process, timeout time.Duration) *link {
	l := &link{
		conn: conn, proc: proc, out: wire.NewWriter(conn), timeout: timeout, started: time.Now(),
		done: make(chan struct{}), pending: map[uint32]*call{},
	}
	l.dog = time.AfterFunc(time.Hour, l.watch)
	l.dog.Stop()
	go l.read()
	return l
}

// read hands out responses until the link is lost.
func (l *link) read() {
	in, buf := bufio.NewReaderSize(l.conn, 16<<10), []byte(nil)
	for {
		p, b, err := wire.ReadResponse(in, buf)
		if err != nil {
			l.fail(fmt.Errorf("%w: %v", errDied, err))
			return
		}
		clear(b) // a shared secret may be in it
		buf = b
		if c := l.take(p.ID); c != nil {
			l.late.Store(false)
			c.answer <- p
		}
	}
}

// send registers a call and writes its request.
func (l *link) send(c *call, q wire.Request) error {
	l.mu.Lock()
	if l.cause != nil {
		defer l.mu.Unlock()
		return l.cause
	}
	if len(l.pending) >= maxInFlight {
		defer l.mu.Unlock()
		return fmt.Errorf("%d calls wait for worker %d: %w", maxInFlight, l.proc.cmd.Process.Pid, hsm.ErrUnavailable)
	}
	l.nextID++
	q.ID = l.nextID
	l.pending[q.ID] = c
	l.load.Store(int64(len(l.pending)))
	if l.wake.IsZero() || c.overdue.Before(l.wake) {
		l.watchAtLocked(c.overdue)
	}
	l.mu.Unlock()

	buf := frames.Get().(*[]byte)
	defer frames.Put(buf)
	*buf = q.Append(*buf)
	if err := l.out.Frame(*buf); err != nil {
		l.take(q.ID)
		return fmt.Errorf("%w: %v", errDied, err)
	}
	return nil
}

// frames are buffers for requests.
var frames = sync.Pool{New: func() any { return new([]byte) }}

func (l *link) take(id uint32) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.pending[id]
	delete(l.pending, id)
	l.load.Store(int64(len(l.pending)))
	return c
}

// watch kills the worker when a call is overdue, and comes back when the next
// one may be.
func (l *link) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return
	}
	first := time.Time{}
	for _, c := range l.pending {
		if first.IsZero() || c.overdue.Before(first) {
			first = c.overdue
		}
	}
	if first.IsZero() {
		l.wake = first
		return
	}
	if time.Now().Before(first) {
		l.watchAtLocked(first)
		return
	}
	go l.fail(fmt.Errorf("%w: no answer in time, killed", errDied))
	l.proc.kill()
}

func (l *link) watchAtLocked(when time.Time) {
	l.wake = when
	l.dog.Reset(time.Until(when))
}

// fail ends the link once; whoever waits learns the first cause.
func (l *link) fail(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == nil {
		l.cause = cause
		_ = l.conn.Close()
		close(l.done)
	}
}

func (l *link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

func (l *link) lost() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// do sends a request and waits for its answer, the deadline or the end of ctx.
// An error that wraps errDied or [wire.ErrLost] may be tried elsewhere.
func (l *link) do(ctx context.Context, q wire.Request, deadline time.Time) (wire.Response, error) {
	w := waiters.Get().(*waiter)
	w.overdue = deadline.Add(grace)
	w.timer.Reset(time.Until(deadline))
	if err := l.send(&w.call, q); err != nil {
		return wire.Response{}, err
	}
	select {
	case p := <-w.answer:
		w.timer.Stop()
		waiters.Put(w)
		return p, p.Err
	case <-l.done:
		select {
		case p := <-w.answer: // it was the last one
			return p, p.Err
		default:
			return wire.Response{}, l.failure()
		}
	case <-ctx.Done():
		return wire.Response{}, ctx.Err()
	case <-w.timer.C:
		l.late.Store(true)
		return wire.Response{}, fmt.Errorf("worker %d: no answer in time: %w", l.proc.cmd.Process.Pid, hsm.ErrUnavailable)
	}
}

// waiter is a call with a timer, used again only when it was answered.
type waiter struct {
	call
	timer *time.Timer
}

var waiters = sync.Pool{New: func() any {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return &waiter{call{answer: make(chan wire.Response, 1)}, timer}
}}
