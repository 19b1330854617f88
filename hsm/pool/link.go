package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

const (
	// maxInFlight bounds the calls one worker is given, in its token or waiting.
	maxInFlight = 1024
	// tick is how late a caller that reads or writes notices the end of its
	// context. The others notice at once.
	tick = 10 * time.Millisecond
)

var (
	// errDied: the worker ended before it answered; another one may.
	errDied = errors.New("worker died")
	// errLate: no answer in time. It wraps [hsm.ErrUnavailable].
	errLate = fmt.Errorf("no answer in time: %w", hsm.ErrUnavailable)
)

// link is the conversation with one worker. Requests are written by their
// callers. One of the callers that wait for an answer is the reader: it hands
// out the answers of the others until its own has come, and then makes another
// caller the reader. So an answer that is alone on its way wakes nobody but
// the one it is for.
type link struct {
	sock    *wire.Socket
	proc    *process
	lane    *link // beside the conversation, for canaries; a lane has none
	started time.Time
	done    chan struct{}      // closed when the link is lost
	buf     []byte             // the reader's
	changed func(failed error) // told when silent changes; nil for nobody

	silent atomic.Bool  // somebody waited in vain, no answer since
	load   atomic.Int64 // calls in flight
	record record
	pace   pace

	mu        sync.Mutex // guards what follows
	pending   map[uint32]*call
	nextID    uint32
	newest    uint32      // highest id that was answered
	answered  time.Time   // last
	reading   bool        // there is a reader
	abandoned int         // pending calls nobody waits for
	exited    bool        // the process ended
	wake      time.Time   // when the watchdog looks, zero for never
	dog       *time.Timer // fires at wake
	cause     error       // why the link was lost
}

// news is what a waiting caller learns: its answer, or that it is the reader.
type news struct {
	answer wire.Response
	read   bool
}

// call is one request on its way. Its caller may give up; it stays pending
// then, so that a worker that never answers is noticed.
type call struct {
	overdue time.Time // when the worker is to be killed
	news    chan news
	waiting bool   // may be made the reader
	gone    bool   // its caller gave up
	slow    bool   // tells nothing of the pace of others
	partial []byte // the answer so far
}

func newLink(sock *wire.Socket, proc *process) *link {
	l := &link{
		sock: sock, proc: proc, started: time.Now(),
		done: make(chan struct{}), buf: wire.Buffer(), pending: map[uint32]*call{},
	}
	l.dog = time.AfterFunc(time.Hour, l.watch)
	l.dog.Stop()
	go func() {
		<-proc.exited
		l.mu.Lock()
		defer l.mu.Unlock()
		l.exited = true
		if !l.reading {
			l.passLocked()
		}
	}()
	return l
}

func (l *link) pid() int { return l.proc.cmd.Process.Pid }

// register makes a call pending; begins is for one of [hsm.NewWork].
func (l *link) register(c *call, begins bool) (id uint32, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return 0, l.cause
	}
	if most := l.pace.most(begins); len(l.pending) >= most {
		return 0, fmt.Errorf("%d calls wait for worker %d: %w", most, l.pid(), hsm.ErrBusy)
	}
	l.nextID++
	l.pending[l.nextID] = c
	l.load.Store(int64(len(l.pending)))
	if l.wake.IsZero() || c.overdue.Before(l.wake) {
		l.watchAtLocked(c.overdue)
	}
	return l.nextID, nil
}

func (l *link) takeLocked(id uint32) {
	delete(l.pending, id)
	l.load.Store(int64(len(l.pending)))
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
		l.sock.Shutdown()
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

// well tells whether an answer can be expected.
func (l *link) well() bool { return !l.silent.Load() && !l.lost() }

// suspect marks a worker that let somebody wait in vain.
func (l *link) suspect() { l.setSilent(true) }

func (l *link) setSilent(silent bool) {
	if l.silent.Swap(silent) != silent && l.changed != nil {
		go l.changed(nil)
	}
}

// end waits for the process of a link that is lost, and releases what it had.
func (l *link) end() {
	if l.lane != nil {
		l.lane.fail(l.failure())
	}
	l.proc.end()
	_ = l.sock.Close()
	if l.lane != nil {
		_ = l.lane.sock.Close()
	}
}

// do sends a request and waits for its answer, for as long as patience lasts or
// until the end of ctx. An error that wraps errDied, errLate or [wire.ErrLost]
// may be tried elsewhere.
func (l *link) do(ctx context.Context, q wire.Request, patience patience) (wire.Response, error) {
	w := waiters.Get().(*waiter)
	w.waiting, w.gone, w.partial = false, false, nil
	w.overdue, w.slow = patience.overdue, q.Op.Slow()
	id, err := l.register(&w.call, hsm.IsNewWork(ctx))
	if err != nil {
		waiters.Put(w)
		return wire.Response{}, err
	}
	q.ID = id
	turn := turn{l, w, id, patience, time.Now()}
	if err := turn.send(ctx, q); err != nil {
		return wire.Response{}, err
	}
	p, err := turn.wait(ctx)
	if err != nil {
		return p, err // its news may still come
	}
	waiters.Put(w)
	return p, p.Err
}

// waiter is a call with a timer, used again only when it was answered.
type waiter struct {
	call
	timer *time.Timer
}

var waiters = sync.Pool{New: func() any {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return &waiter{call{news: make(chan news, 1)}, timer}
}}
