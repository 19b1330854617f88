package wire

import (
	"errors"
	"io"
	"sync"
)

// maxPending bounds what waits for a peer that does not read, in bytes.
const maxPending = 4 * maxRequest

// errFull: the other side does not keep up.
var errFull = errors.New("peer does not read")

// Writer coalesces the frames of many goroutines into few writes: whoever
// comes while a write is under way leaves its frame to the one who writes.
type Writer struct {
	w io.Writer

	mu      sync.Mutex // guards what follows
	pending []byte     // frames not yet written
	spare   []byte     // the other buffer, empty
	writing bool
	err     error // the first error, for ever
}

// NewWriter returns a Writer on w. Frames are copied.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Frame sends a frame. Nil means it was written or that another goroutine is
// about to; after an error nothing is written any more.
func (w *Writer) Frame(frame []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && w.writing && len(w.pending)+len(frame) > maxPending {
		return errFull
	}
	if w.err != nil {
		return w.err
	}
	w.pending = append(w.pending, frame...)
	if w.writing {
		return nil
	}
	w.writing = true
	for len(w.pending) > 0 && w.err == nil {
		w.flushLocked()
	}
	w.writing = false
	return w.err
}

// flushLocked writes what is pending, without the lock while it does.
func (w *Writer) flushLocked() {
	out := w.pending
	w.pending = w.spare
	w.mu.Unlock()
	_, err := w.w.Write(out)
	clear(out) // a secret may be in it
	w.mu.Lock()
	w.spare, w.err = out[:0], err
}
