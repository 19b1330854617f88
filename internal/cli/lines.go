package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Lines is the output of a daemon: its log, or a display. A separate goroutine writes each line to the file behind it, so
// that a slow, stuck or closed reader stops no work. Lines that cannot be written are lost and counted: a line before
// the next one says how many were lost.
type Lines struct {
	to io.Writer

	mu      sync.Mutex
	changed sync.Cond // the following fields have changed
	queue   []queued
	size    int // of the queue, bytes
	lost    int // number of lines lost after the newest of the queue
	closed  bool
}

// queued is a line, and the number of lines lost before it.
type queued struct {
	line []byte
	lost int
}

// maxQueued bounds the lines that wait for a slow reader, in bytes.
const maxQueued = 1 << 20

// flushTimeout bounds how long [Lines.Close] waits for a reader.
const flushTimeout = time.Second / 2

// NewLines returns an output that writes to a file or a buffer. The caller closes it, which does not close the file.
func NewLines(to io.Writer) *Lines {
	l := &Lines{to: to}
	l.changed.L = &l.mu
	go l.run()
	return l
}

// Write queues a copy of p, which holds whole lines. It does not block and returns no error.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.size+len(p) > maxQueued {
		l.lost++
		return len(p), nil
	}
	l.queue, l.size = append(l.queue, queued{bytes.Clone(p), l.lost}), l.size+len(p)
	l.lost = 0
	l.changed.Broadcast()
	return len(p), nil
}

// Close waits until the queued lines are written, for half a second at most. Later lines are lost.
func (l *Lines) Close() error {
	timeout := time.AfterFunc(flushTimeout, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.size = 0
		l.changed.Broadcast()
	})
	defer timeout.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed.Broadcast()
	for l.size > 0 {
		l.changed.Wait()
	}
	return nil
}

// File returns the file behind an output, or nil if there is none.
func (l *Lines) File() *os.File {
	f, _ := l.to.(*os.File)
	return f
}

func (l *Lines) run() {
	for {
		next, more := l.next()
		if !more {
			return
		}
		var err error
		if next.lost > 0 {
			_, err = l.to.Write(lostLine(next))
		}
		if err == nil {
			_, err = l.to.Write(next.line)
		}
		l.done(next, err)
	}
}

func (l *Lines) next() (q queued, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 {
		if l.closed {
			return q, false
		}
		l.changed.Wait()
	}
	q, l.queue = l.queue[0], l.queue[1:]
	return q, true
}

// done takes a line off the queue. A line that was not written is lost, with those before it.
func (l *Lines) done(q queued, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.size = max(l.size-len(q.line), 0)
	if err != nil && len(l.queue) > 0 {
		l.queue[0].lost += q.lost + 1
	} else if err != nil {
		l.lost += q.lost + 1
	}
	l.changed.Broadcast()
}

// lostLine reports lost lines in the format of the line after them.
func lostLine(q queued) []byte {
	if bytes.HasPrefix(q.line, []byte("{")) {
		const report = `{"@level":"warn","@message":"log lines were lost: their reader is slow or gone","lines":%d}`
		return fmt.Appendf(nil, report+"\n", q.lost)
	}
	return fmt.Appendf(nil, "%d lines were lost: their reader is slow or gone\n", q.lost)
}
