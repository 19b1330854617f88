package wire

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"countersign/hsm"
)

// Token is what a child serves: a token that can tell when it is of no more
// use, by closing Dead.
type Token interface {
	hsm.Token
	Dead() <-chan struct{}
}

// farewell is how long answers under way may take once the token is dead.
const farewell = 100 * time.Millisecond

// Serve answers requests until the other side closes conn, which is nil, sends
// something malformed, which is [ErrFrame], or the token dies, which is
// [ErrLost]; the process is to end then. At most parallel calls are in the
// token at once, more wait in the socket.
func Serve(conn io.ReadWriter, token Token, parallel int) error {
	s := &server{token: token, in: bufio.NewReaderSize(conn, 16<<10), out: NewWriter(conn)}
	ended := make(chan error, parallel)
	for range parallel {
		go func() { ended <- s.work() }()
	}
	select {
	case err := <-ended:
		return err
	case <-token.Dead():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(farewell):
		return ErrLost
	}
}

// server has workers that take turns at reading: one waits in the socket, and
// when its request has come it hands the socket on and serves the request
// itself, so that no request changes goroutines on its way.
type server struct {
	token Token
	out   *Writer

	mu    sync.Mutex // guards what follows: its holder reads
	in    *bufio.Reader
	ended error // set once the socket is of no more use
}

func (s *server) work() error {
	var in, out []byte
	for {
		q, buf, err := s.next(in)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		p := s.answer(q)
		in, out = buf, p.append(out)
		err = s.out.Frame(out)
		clear(out)
		clear(p.Payload)
		if err != nil {
			return err
		}
		if errors.Is(p.Err, ErrLost) {
			return ErrLost
		}
	}
}

func (s *server) next(buf []byte) (Request, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return Request{}, buf, s.ended
	}
	q, buf, err := readRequest(s.in, buf)
	s.ended = err
	return q, buf, err
}

func (s *server) answer(q Request) Response {
	p := Response{ID: q.ID}
	left := time.Duration(q.Deadline - Now())
	if left <= 0 {
		p.Err = fmt.Errorf("%s: deadline passed before a session was free: %w", q.Op, hsm.ErrUnavailable)
		return p
	}
	start := time.Now()
	ctx, cancel := context.WithDeadline(context.Background(), start.Add(left))
	defer cancel()
	p.Payload, p.Err = s.call(ctx, q)
	p.Took = time.Since(start)
	if p.Err != nil {
		select {
		case <-s.token.Dead():
			p.Err = fmt.Errorf("%v: %w", p.Err, ErrLost)
		default:
		}
	}
	return p
}

func (s *server) call(ctx context.Context, q Request) ([]byte, error) {
	switch q.Op {
	case Sign:
		return s.token.Sign(ctx, q.Key, q.Payload)
	case Derive:
		peer, err := ecdh.P256().NewPublicKey(q.Payload)
		if err != nil {
			return nil, fmt.Errorf("derive: %v: %w", err, hsm.ErrInput)
		}
		return s.token.Derive(ctx, q.Key, peer)
	case MAC:
		return s.token.MAC(ctx, q.Key, q.Payload)
	case Generate:
		k, err := s.token.Generate(ctx, parseSpec(q.Payload))
		return appendKey(nil, k), err
	default:
		keys, err := s.token.Keys(ctx)
		var out []byte
		for _, k := range keys {
			out = appendKey(out, k)
		}
		return out, err
	}
}
