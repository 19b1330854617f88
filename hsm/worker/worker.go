// Package worker serves a token over the sockets that an hsm-worker process inherits.
package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"countersign/hsm"
	"countersign/hsm/wire"
)

// Token is a token that closes Dead when it is of no more use.
type Token interface {
	hsm.Token
	Dead() <-chan struct{}
}

// lastAnswers is how long calls under way may take once the token is dead.
const lastAnswers = 100 * time.Millisecond

// Serve answers requests until the parent closes a socket, which is nil, or sends
// something malformed, which is [wire.ErrFrame], or the token dies, which is
// [wire.ErrLost]. The process should end then. At most parallel calls of conn are in
// the token at once; more wait in the socket. Calls of the other sockets do not wait
// behind them: each has a server, and should find a session, of its own.
func Serve(conn *wire.Socket, token Token, parallel int, others ...*wire.Socket) error {
	ended := make(chan error, parallel+len(others))
	for range parallel {
		go func() { ended <- serve(conn, token) }()
	}
	for _, other := range others {
		go func() { ended <- serve(other, token) }()
	}
	select {
	case err := <-ended:
		return err
	case <-token.Dead():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(lastAnswers):
		return wire.ErrLost
	}
}

// serve answers one request after the other. All servers of a socket block in it, and
// the kernel gives each request to one of them.
func serve(conn *wire.Socket, token Token) error {
	in, out := wire.Buffer(), []byte(nil)
	for {
		q, err := wire.ReadRequest(conn, in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p := answer(token, q)
		clear(q.Payload) // it may contain a secret
		out, err = p.Write(conn, out)
		clear(p.Payload)
		if errors.Is(err, io.ErrClosedPipe) {
			return nil
		}
		if err != nil {
			return err
		}
		if errors.Is(p.Err, wire.ErrLost) {
			return wire.ErrLost
		}
	}
}

func answer(token Token, q wire.Request) wire.Response {
	p := wire.Response{ID: q.ID}
	left := time.Duration(q.Deadline - wire.Now())
	if left <= 0 {
		p.Err = fmt.Errorf("%s: deadline passed before a session was free: %w", q.Op, hsm.ErrUnavailable)
		return p
	}
	start := time.Now()
	ctx := &deadline{at: start.Add(left)}
	defer ctx.release()
	p.Payload, p.Err = wire.Call(ctx, token, q)
	p.Took = time.Since(start)
	if p.Err != nil {
		select {
		case <-token.Dead():
			p.Err = fmt.Errorf("%v: %w", p.Err, wire.ErrLost)
		default:
		}
	}
	return p
}

// deadline is a context that ends at a time. It sets a timer only when a caller asks
// for Done, which a call that finds an idle session does not.
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

// release stops the timer.
func (d *deadline) release() {
	if d.cancel != nil {
		d.cancel()
	}
}
