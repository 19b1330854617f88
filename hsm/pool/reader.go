package pool

import (
	"fmt"
	"time"

	"countersign/hsm/wire"
)

// hand gives an answer to the call it is for.
func (l *link) hand(p wire.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.pending[p.ID]
	if c == nil {
		return
	}
	l.setSilent(false)
	l.answered = time.Now()
	if after(p.ID, l.newest) {
		l.newest = p.ID
	}
	if p.More || c.partial != nil {
		c.partial = append(c.partial, p.Payload...)
		p.Payload = c.partial
	}
	if len(p.Payload) > wire.MaxPayload {
		go l.fail(fmt.Errorf("%w: answer of more than %d bytes", errDied, wire.MaxPayload))
		return
	}
	if p.More {
		return
	}
	l.takeLocked(p.ID)
	l.record.calls.Add(1)
	if !c.slow {
		l.pace.observe(p.Took)
	}
	if c.gone {
		clear(p.Payload)
		l.abandoned--
		return
	}
	c.waiting = false
	c.news <- news{answer: p}
}

func (l *link) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.passLocked()
}

// passLocked makes a waiting caller the reader. Where only the answers to
// abandoned calls or the end of the process are left to be read, it is a
// goroutine of its own; where there is nothing to be read, nobody.
func (l *link) passLocked() {
	l.reading = l.cause == nil
	if !l.reading {
		return
	}
	for _, c := range l.pending {
		if c.waiting {
			c.waiting = false
			c.news <- news{read: true}
			return
		}
	}
	if l.abandoned > 0 || l.exited {
		go l.drain()
		return
	}
	l.reading = false
}

// drain reads while no caller does.
func (l *link) drain() {
	for {
		p, err := wire.ReadResponse(l.sock, l.buf)
		switch {
		case wire.IsTick(err):
		case err != nil:
			l.fail(fmt.Errorf("%w: %v", errDied, err))
			return
		default:
			l.hand(p)
		}
		if !l.needed() {
			return
		}
	}
}

// needed tells whether drain is to go on; otherwise there is another reader,
// or nothing to be read.
func (l *link) needed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.abandoned > 0 || l.exited {
		return true
	}
	l.reading = false
	l.passLocked()
	return false
}
