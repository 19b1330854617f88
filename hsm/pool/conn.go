package pool

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

const (
	// maxInFlight bounds the calls that one worker is given, in its token or waiting.
	maxInFlight = 1024
	// tick is how late a caller that writes, or reads its own answer, notices the end of its context.
	tick = 10 * time.Millisecond
	// lookAgain is how often a caller that is past its hedge looks for another worker.
	lookAgain = 20 * time.Millisecond
)

var (
	// errDied: the worker ended before it answered; another one may answer.
	errDied = errors.New("worker died")
	// errLate: no answer in time. It wraps [hsm.ErrUnavailable].
	errLate = fmt.Errorf("no answer in time: %w", hsm.ErrUnavailable)
)

// conn is the connection to one worker. Callers write their own requests. A caller that is
// alone reads its own answer, which saves a switch of threads. As soon as several calls are
// pending, or one was given up, a goroutine reads the answers and gives each to its call by
// the id.
type conn struct {
	sock     *wire.Socket
	proc     *process
	canaries *conn // the second connection, for canaries; nil for that one itself
	started  time.Time
	done     chan struct{}      // closed when the connection is lost
	takeOver chan struct{}      // has room for one: the goroutine is to read
	buf      []byte             // of the one who reads
	changed  func(failed error) // called when silent changes; may be nil

	silent   atomic.Bool  // a caller waited in vain, and no answer came since
	inFlight atomic.Int64 // len(pending)
	history  history
	pace     pace

	mu       sync.Mutex // guards the fields below
	pending  map[uint32]*call
	reading  bool // a caller or the goroutine reads
	exited   bool // the process has ended: its last answers and the end are read
	nextID   uint32
	newest   uint32      // highest id that was answered
	answered time.Time   // last
	wake     time.Time   // when the watchdog looks, zero for never
	watchdog *time.Timer // fires at wake
	cause    error       // why the connection was lost
}

// call is one request without an answer. If its caller gives up it stays pending, so that a
// worker that never answers is noticed.
type call struct {
	id      uint32
	sent    time.Time
	limits  limits
	answer  chan wire.Response // has room for one
	gone    bool               // the caller gave up
	slow    bool               // says nothing about the pace of other calls
	partial []byte             // the answer so far
	timer   *time.Timer
}

// calls are used again only when they were answered.
var calls = sync.Pool{New: func() any {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return &call{answer: make(chan wire.Response, 1), timer: timer}
}}

// limits is how long a caller waits for one worker.
type limits struct {
	hedge     time.Time   // from here on another worker is worth asking
	deadline  time.Time   // the caller stops waiting
	overdue   time.Time   // the worker is killed
	elsewhere func() bool // whether there is another worker to ask; nil for none
}

func newConn(sock *wire.Socket, proc *process) *conn {
	c := &conn{
		sock: sock, proc: proc, started: time.Now(), done: make(chan struct{}), takeOver: make(chan struct{}, 1),
		buf: wire.Buffer(), pending: map[uint32]*call{},
	}
	c.watchdog = time.AfterFunc(time.Hour, c.killOverdue)
	c.watchdog.Stop()
	go c.read()
	return c
}

func (c *conn) pid() int { return c.proc.cmd.Process.Pid }

// do sends a request and waits for its answer, within the limits and until the end of
// ctx. After an error that wraps errDied, errLate or [wire.ErrLost] another worker may be
// asked.
func (c *conn) do(ctx context.Context, q wire.Request, l limits) (wire.Response, error) {
	w := calls.Get().(*call)
	w.sent, w.limits, w.gone, w.slow, w.partial = time.Now(), l, false, q.Op.Slow(), nil
	if err := c.register(w, hsm.IsNewWork(ctx)); err != nil {
		calls.Put(w)
		return wire.Response{}, err
	}
	q.ID = w.id
	if err := c.send(ctx, w, q); err != nil {
		return wire.Response{}, err
	}
	p, err := c.wait(ctx, w)
	if err != nil {
		return p, err // its answer may still come
	}
	calls.Put(w)
	return p, p.Err
}

// register makes a call pending; begins is set for one of [hsm.NewWork].
func (c *conn) register(w *call, begins bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	if most := c.pace.most(begins); len(c.pending) >= most {
		return fmt.Errorf("%d calls wait for worker %d: %w", most, c.pid(), hsm.ErrBusy)
	}
	c.nextID++
	w.id = c.nextID
	c.pending[w.id] = w
	c.inFlight.Store(int64(len(c.pending)))
	if c.wake.IsZero() || w.limits.overdue.Before(c.wake) {
		c.wakeAtLocked(w.limits.overdue)
	}
	return nil
}

func (c *conn) removeLocked(id uint32) {
	delete(c.pending, id)
	c.inFlight.Store(int64(len(c.pending)))
}

// frames are buffers for requests.
var frames = sync.Pool{New: func() any { return new([]byte) }}

// send writes the request. If a worker reads nothing for so long that the socket is full,
// its callers wait as for a worker that does not answer.
func (c *conn) send(ctx context.Context, w *call, q wire.Request) error {
	buf := frames.Get().(*[]byte)
	defer func() {
		clear(*buf) // it may contain a secret
		frames.Put(buf)
	}()
	*buf = q.Append(*buf)
	for {
		_, err := c.sock.Write(*buf)
		if err == nil {
			return nil
		}
		if !wire.IsTick(err) {
			err = fmt.Errorf("%w: %v", errDied, err)
		} else if err = c.over(ctx, w); err == nil {
			continue
		}
		c.mu.Lock()
		c.removeLocked(w.id)
		c.mu.Unlock()
		return err
	}
}

// wait returns the answer, or why there is none.
func (c *conn) wait(ctx context.Context, w *call) (wire.Response, error) {
	c.mu.Lock()
	alone := !c.reading && len(c.pending) == 1 && c.pending[w.id] == w
	c.reading = c.reading || alone
	if !c.reading {
		c.handOverLocked()
	}
	c.mu.Unlock()
	if alone {
		if err := c.readOwn(ctx, w); err != nil {
			return c.giveUp(w, err)
		}
	}
	defer w.timer.Stop()
	for {
		w.timer.Reset(w.nextLook())
		select {
		case p := <-w.answer:
			return p, nil
		case <-c.done:
			return c.giveUp(w, c.failure())
		case <-ctx.Done():
			return c.giveUp(w, ctx.Err())
		case <-w.timer.C:
			if err := c.over(ctx, w); err != nil {
				return c.giveUp(w, err)
			}
		}
	}
}

// giveUp leaves the call pending, unless its answer has come.
func (c *conn) giveUp(w *call, cause error) (wire.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case p := <-w.answer:
		return p, nil
	default:
		w.gone = true
		return wire.Response{}, cause
	}
}

// nextLook returns how long it takes until over may return an error.
func (w *call) nextLook() time.Duration {
	now := time.Now()
	if now.Before(w.limits.hedge) {
		return w.limits.hedge.Sub(now)
	}
	return min(max(w.limits.deadline.Sub(now), 0), lookAgain)
}

// over returns why the caller should stop waiting, nil if it should not: its context ended,
// the deadline has passed, or the worker has been silent while another one may answer. A
// worker that is merely busy, and answers earlier calls, is not silent.
func (c *conn) over(ctx context.Context, w *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := time.Now()
	if now.Before(w.limits.hedge) {
		return nil
	}
	silent, overtaken := c.silence(w)
	if silent {
		c.setSilent(true)
	}
	if now.Before(w.limits.deadline) && !((silent || overtaken) && w.limits.elsewhere != nil && w.limits.elsewhere()) {
		return nil
	}
	return fmt.Errorf("worker %d: %w", c.pid(), errLate)
}

// silence reports whether nothing was answered since a call was sent, and whether a later
// call was answered: then the call is not waiting for its turn but stuck in the token.
func (c *conn) silence(w *call) (silent, overtaken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.answered.After(w.sent), after(c.newest, w.id)
}

// after compares ids, which start again after 2³² calls.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// readOwn gives out answers until the one of w. It returns nil when w.answer has it, and also
// when another call became pending meanwhile: the goroutine reads from then on.
func (c *conn) readOwn(ctx context.Context, w *call) error {
	for {
		if err := c.readOne(); wire.IsTick(err) {
			if err := c.over(ctx, w); err != nil {
				c.handOver()
				return err
			}
		} else if err != nil {
			return err
		}
		c.mu.Lock()
		if c.pending[w.id] != w || len(c.pending) > 1 {
			c.handOverLocked()
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
	}
}

func (c *conn) handOver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handOverLocked()
}

// handOverLocked has the goroutine read if there is something to read.
func (c *conn) handOverLocked() {
	if c.isDueLocked() {
		select {
		case c.takeOver <- struct{}{}:
		default:
		}
	}
}

// isDue reports whether an answer or the end is still to be read, and sets reading to it.
func (c *conn) isDue() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isDueLocked()
}

func (c *conn) isDueLocked() bool {
	c.reading = len(c.pending) > 0 || c.exited
	return c.reading
}

// read is the goroutine. It reads while calls are pending, and after the process has ended.
func (c *conn) read() {
	for exited := c.proc.exited; ; {
		select {
		case <-c.takeOver:
		case <-exited:
			exited = nil
			c.mu.Lock()
			c.exited = true
			if !c.reading { // else the reader finds the end, or hands over
				c.handOverLocked()
			}
			c.mu.Unlock()
			continue
		case <-c.done:
			return
		}
		for more := true; more; more = c.isDue() {
			if err := c.readOne(); err != nil && !wire.IsTick(err) {
				return
			}
			runtime.Gosched() // the caller can run on this thread, which is about to block
		}
	}
}

// readOne reads one answer. An error that is no tick ends the connection.
func (c *conn) readOne() error {
	p, err := wire.ReadResponse(c.sock, c.buf)
	switch {
	case wire.IsTick(err):
		return err
	case err != nil:
		c.fail(fmt.Errorf("%w: %v", errDied, err))
		return c.failure()
	}
	c.deliver(p)
	return nil
}

// deliver gives an answer, or the next part of one, to its call.
func (c *conn) deliver(p wire.Response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.pending[p.ID]
	if w == nil {
		return
	}
	c.setSilent(false)
	c.answered = time.Now()
	if after(p.ID, c.newest) {
		c.newest = p.ID
	}
	if p.More || w.partial != nil {
		w.partial = append(w.partial, p.Payload...)
		p.Payload = w.partial
	}
	if len(p.Payload) > wire.MaxPayload {
		go c.fail(fmt.Errorf("%w: answer of more than %d bytes", errDied, wire.MaxPayload))
		return
	}
	if p.More {
		return
	}
	c.removeLocked(p.ID)
	c.history.calls.Add(1)
	if !w.slow {
		c.pace.observe(p.Took)
	}
	if w.gone {
		clear(p.Payload)
		return
	}
	w.answer <- p
}

// killOverdue kills the worker if a call is overdue. Otherwise it comes back when the
// next call may be.
func (c *conn) killOverdue() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	first := time.Time{}
	for _, w := range c.pending {
		if first.IsZero() || w.limits.overdue.Before(first) {
			first = w.limits.overdue
		}
	}
	if first.IsZero() {
		c.wake = first
		return
	}
	if time.Now().Before(first) {
		c.wakeAtLocked(first)
		return
	}
	go c.fail(fmt.Errorf("%w: no answer in time, killed", errDied))
	c.proc.kill()
}

func (c *conn) wakeAtLocked(when time.Time) {
	c.wake = when
	c.watchdog.Reset(time.Until(when))
}

// fail ends the connection. The first cause is kept.
func (c *conn) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = cause
		c.sock.Shutdown()
		close(c.done)
	}
}

func (c *conn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

func (c *conn) lost() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// well reports whether an answer can be expected.
func (c *conn) well() bool { return !c.silent.Load() && !c.lost() }

func (c *conn) setSilent(silent bool) {
	if c.silent.Swap(silent) != silent && c.changed != nil {
		go c.changed(nil)
	}
}

// end waits for the process of a connection that is lost, and closes the sockets.
func (c *conn) end() {
	if c.canaries != nil {
		c.canaries.fail(c.failure())
	}
	c.proc.end()
	_ = c.sock.Close()
	if c.canaries != nil {
		_ = c.canaries.sock.Close()
	}
}

// history counts the answers of a worker.
type history struct {
	calls atomic.Uint64 // answered

	mu     sync.Mutex // guards the fields below
	wrong  int        // wrong answers in a row
	failed int        // canaries without an answer in a row
	proven time.Time  // when its last signature or canary was right
}

// answeredRight notes that an answer was verified and is right.
func (c *conn) answeredRight() {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	c.history.wrong, c.history.failed, c.history.proven = 0, 0, time.Now()
}

// countWrong notes that an answer is wrong. It returns how many are in a row.
func (c *conn) countWrong() int {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	c.history.wrong++
	return c.history.wrong
}

// countFailed notes that a canary got no answer. It returns how many are in a row.
func (c *conn) countFailed() int {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	c.history.failed++
	return c.history.failed
}

// pace is how fast a worker answers. It bounds how many calls may wait: a call that would
// wait for longer than queue is better refused at once.
type pace struct {
	sessions int           // calls served at once; 0 for no bound but maxInFlight
	queue    time.Duration // how long a call may wait before it is served

	took atomic.Int64 // of one call inside the token, smoothed over the last few dozen, ns
}

// observe learns from an answer. Callers hold conn.mu.
func (p *pace) observe(took time.Duration) {
	const weight = 32
	before := p.took.Load()
	p.took.Store(before + (int64(took)-before)/weight)
}

// most returns how many calls may be in flight, at least eight for each session. Calls that
// begin new work are refused at half of that.
func (p *pace) most(begins bool) int {
	took := p.took.Load()
	if took <= 0 || p.sessions == 0 {
		return maxInFlight
	}
	n := max(int64(p.sessions)*int64(p.queue)/took, int64(8*p.sessions))
	if begins {
		n /= 2
	}
	return int(min(n, maxInFlight))
}
