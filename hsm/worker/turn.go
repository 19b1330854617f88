package worker

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// turn is one call on a link, from its caller's side.
type turn struct {
	link     *link
	w        *waiter
	id       uint32
	deadline time.Time
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
	if time.Now().Before(t.deadline) {
		return nil
	}
	return t.tooLate()
}

func (t turn) tooLate() error {
	t.link.late.Store(true)
	return fmt.Errorf("worker %d: no answer in time: %w", t.link.proc.cmd.Process.Pid, hsm.ErrUnavailable)
}

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
	t.w.timer.Reset(time.Until(t.deadline))
	defer t.w.timer.Stop()
	select {
	case n := <-t.w.news:
		return t.learn(ctx, n)
	case <-l.done:
		select {
		case n := <-t.w.news: // it was the last one
			if !n.read {
				return n.answer, nil
			}
		default:
		}
		return wire.Response{}, l.failure()
	case <-ctx.Done():
		return t.giveUp(ctx.Err())
	case <-t.w.timer.C:
		return t.giveUp(t.tooLate())
	}
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
