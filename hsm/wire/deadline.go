package wire

import (
	"context"
	"sync"
	"time"
)

// deadline is a context that ends at a time. A timer is set only for who waits
// for its end, which on the way to an idle session nobody does.
type deadline struct {
	at     time.Time
	once   sync.Once
	armed  context.Context
	cancel context.CancelFunc
}

func (d *deadline) Deadline() (time.Time, bool) { return d.at, true }
func (d *deadline) Value(any) any               { return nil }

func (d *deadline) Err() error {
	if time.Now().Before(d.at) {
		return nil
	}
	return context.DeadlineExceeded
}

func (d *deadline) Done() <-chan struct{} {
	d.once.Do(func() { d.armed, d.cancel = context.WithDeadline(context.Background(), d.at) })
	return d.armed.Done()
}

// release stops the timer once nobody waits any more.
func (d *deadline) release() {
	if d.cancel != nil {
		d.cancel()
	}
}
