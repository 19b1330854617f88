package wire

import (
	"errors"
	"fmt"
	"io"
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

// Serve answers requests until the other side closes a socket, which is nil,
// sends something malformed, which is [ErrFrame], or the token dies, which is
// [ErrLost]; the process is to end then. At most parallel calls of conn are in
// the token at once, more wait in the socket. A call of a lane waits for none of
// those: each lane has a server, and should find a session, of its own.
func Serve(conn *Socket, token Token, parallel int, lanes ...*Socket) error {
	ended := make(chan error, parallel+len(lanes))
	serve := func(conn *Socket) {
		s := &server{token: token, conn: conn}
		go func() { ended <- s.work() }()
	}
	for range parallel {
		serve(conn)
	}
	for _, lane := range lanes {
		serve(lane)
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

// server has workers that all wait in the socket; the kernel gives each
// request to one of them, which serves it from there to the answer.
type server struct {
	token Token
	conn  *Socket
}

func (s *server) work() error {
	in, out := Buffer(), []byte(nil)
	for {
		b, err := readFrame(s.conn, in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		q, err := parseRequest(b)
		if err != nil {
			return err
		}
		p := s.answer(q)
		clear(b) // a secret may be in it
		out, err = p.write(s.conn, out)
		clear(p.Payload)
		if errors.Is(err, io.ErrClosedPipe) {
			return nil
		}
		if err != nil {
			return err
		}
		if errors.Is(p.Err, ErrLost) {
			return ErrLost
		}
	}
}

func (s *server) answer(q Request) Response {
	p := Response{ID: q.ID}
	left := time.Duration(q.Deadline - Now())
	if left <= 0 {
		p.Err = fmt.Errorf("%s: deadline passed before a session was free: %w", q.Op, hsm.ErrUnavailable)
		return p
	}
	start := time.Now()
	ctx := &deadline{at: start.Add(left)}
	defer ctx.release()
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
