package pool

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"countersign/hsm/wire"
)

// patience is how long a caller waits for one worker.
type patience struct {
	hedge     time.Time   // from here on another worker is worth asking
	deadline  time.Time   // nobody waits any longer
	overdue   time.Time   // the worker is killed
	elsewhere func() bool // whether there is another to ask; nil is no
}

// turn is one call on a link, from its caller's side.
type turn struct {
	link *link
	w    *waiter
	id   uint32
	patience
	sent time.Time
}

// send writes the request. A worker that does not read for so long that the
// socket is full makes its callers wait, like one that does not answer.
func (t turn) send(ctx context.Context, q wire.Request) error {
	buf := frames.Get().(*[]byte)
	defer func() {
		clear(*buf) // a secret may be in it
		frames.Put(buf)
	}()
	*buf = q.Append(*buf)
	for {
		_, err := t.link.sock.Write(*buf)
		if err == nil {
			return nil
		}
		if !wire.IsTick(err) {
			err = fmt.Errorf("%w: %v", errDied, err)
		} else if err = t.ended(ctx); err == nil {
			continue
		}
		t.link.mu.Lock()
		t.link.takeLocked(t.id)
		t.link.mu.Unlock()
		return err
	}
}

// frames are buffers for requests.
var frames = sync.Pool{New: func() any { return new([]byte) }}

// ended is why the caller is to give up, if it is.
func (t turn) ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !t.over() {
		return nil
	}
	return fmt.Errorf("worker %d: %w", t.link.pid(), errLate)
}

// over tells that this worker is not to be waited for any longer: the deadline
// has passed, or it has been silent while another one may answer. One that has
// only much to do, and answers those who came before, is not silent.
func (t turn) over() bool {
	now := time.Now()
	if now.Before(t.hedge) {
		return false
	}
	silent, overtaken := t.link.silence(t.id, t.sent)
	if silent {
		t.link.suspect()
	}
	if !now.Before(t.deadline) {
		return true
	}
	return (silent || overtaken) && t.elsewhere != nil && t.elsewhere()
}

// silence tells whether nothing was answered since a call was sent, and whether
// one that was sent later was: then the call is not waiting for its turn, it is
// in the token, and stuck there.
func (l *link) silence(id uint32, sent time.Time) (silent, overtaken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.answered.After(sent), after(l.newest, id)
}

// after compares ids, which begin again after 2³² calls.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// nextLook is when over may have become true.
func (t turn) nextLook() time.Duration {
	now := time.Now()
	if now.Before(t.hedge) {
		return t.hedge.Sub(now)
	}
	return min(max(t.deadline.Sub(now), 0), lookAgain)
}

// lookAgain is how often a caller that is past its hedge looks for another worker.
const lookAgain = 20 * time.Millisecond

// wait returns the answer. An error says that there is none.
func (t turn) wait(ctx context.Context) (wire.Response, error) {
	l := t.link
	l.mu.Lock()
	if !l.reading {
		l.reading = true
		l.mu.Unlock()
		return t.read(ctx)
	}
	t.w.waiting = true
	l.mu.Unlock()
	defer t.w.timer.Stop()
	for {
		t.w.timer.Reset(t.nextLook())
		select {
		case n := <-t.w.news:
			return t.learn(ctx, n)
		case <-l.done:
			return t.last()
		case <-ctx.Done():
			return t.giveUp(ctx.Err())
		case <-t.w.timer.C:
			if err := t.ended(ctx); err != nil {
				return t.giveUp(err)
			}
		}
	}
}

// last is for a link that is lost: the answer may have been the last one.
func (t turn) last() (wire.Response, error) {
	select {
	case n := <-t.w.news:
		if !n.read {
			return n.answer, nil
		}
	default:
	}
	return wire.Response{}, t.link.failure()
}

func (t turn) learn(ctx context.Context, n news) (wire.Response, error) {
	if n.read {
		return t.read(ctx)
	}
	return n.answer, nil
}

// giveUp leaves the call pending, and is nobody's reader.
func (t turn) giveUp(cause error) (wire.Response, error) {
	l := t.link
	l.mu.Lock()
	defer l.mu.Unlock()
	t.w.waiting = false
	select {
	case n := <-t.w.news:
		if !n.read {
			return n.answer, nil
		}
		t.abandonLocked()
		l.passLocked()
	default:
		t.abandonLocked()
	}
	return wire.Response{}, cause
}

func (t turn) abandonLocked() {
	t.w.gone = true
	t.link.abandoned++
	if !t.link.reading {
		t.link.passLocked()
	}
}

// read is the reader's part of a call: it hands out answers until its own.
func (t turn) read(ctx context.Context) (wire.Response, error) {
	l := t.link
	for {
		select {
		case n := <-t.w.news: // it came before this call was the reader
			l.pass()
			return n.answer, nil
		default:
		}
		p, err := wire.ReadResponse(l.sock, l.buf)
		if wire.IsTick(err) {
			if err = t.ended(ctx); err == nil {
				continue
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			t.abandonLocked()
			l.passLocked()
			return wire.Response{}, err
		}
		if err != nil {
			l.fail(fmt.Errorf("%w: %v", errDied, err))
			return wire.Response{}, l.failure()
		}
		if l.hand(p); p.ID != t.id {
			// Its caller is ready to run on this thread, which is about to block.
			runtime.Gosched()
		}
	}
}
