package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/relay/link"
)

// listener accepts links of one class.
type listener struct {
	*link.Listener
	class deviceapi.LinkClass
}

// phone is one link in use.
type phone struct {
	conn      *link.Conn
	class     deviceapi.LinkClass
	calls     context.Context // for the answers; it outlives the context of receiving
	challenge *challenge      // of the last M1 on this link; nil: none yet
}

// accept serves the phones that connect, each in its own goroutine, until the listener is
// closed, and waits for them. They receive until ctx is over; calls is the context of the answers.
func (r *Relay) accept(ctx, calls context.Context, l listener) {
	var phones sync.WaitGroup
	defer phones.Wait()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors, most likely
			r.log.Warn("accepting a link failed", "link", l.Addr(), "error", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		p := &phone{conn: conn, class: l.class, calls: calls}
		select {
		case r.slots <- struct{}{}:
			phones.Go(func() {
				defer func() { <-r.slots }()
				r.serve(ctx, p)
			})
		default:
			// Sending does not block: the message fits into any buffer.
			conn.SetTimeouts(link.Timeouts{Send: time.Second})
			r.send(p, r.linkError(protocol.Retry{Code: protocol.CodeLinkBusy, After: busyPause}))
			_ = conn.Close()
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// serve answers the frames of one phone until it leaves, is idle for too long or sends
// something that is not a frame, or until ctx is over. An answer that is being made is still sent.
func (r *Relay) serve(ctx context.Context, p *phone) {
	r.metrics.links.Inc()
	defer r.metrics.links.Dec()
	defer func() { _ = p.conn.Close() }()
	stop := context.AfterFunc(ctx, p.conn.Stop)
	defer stop()
	p.conn.SetTimeouts(link.Timeouts{Receive: r.config.Idle, Send: r.config.Send})
	for {
		frame, err := p.conn.Receive()
		if errors.Is(err, protocol.CodeFormat) {
			r.send(p, r.linkError(protocol.CodeFormat))
		}
		if err != nil {
			r.logEnd(err)
			return
		}
		answer, err := r.answer(p, frame)
		if err != nil {
			answer = r.linkError(err)
		}
		if !r.send(p, answer) {
			return
		}
	}
}

func (r *Relay) send(p *phone, msg []byte) bool {
	err := p.conn.Send(msg)
	if err != nil {
		r.logEnd(err)
	}
	return err == nil
}

// logEnd logs an unusual end of a link.
func (r *Relay) logEnd(err error) {
	isUsual := errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
	if !isUsual {
		r.log.Debug("link ended", "error", err)
	}
}

// linkError returns the ME for an error. An error without a code is not the phone's fault.
func (r *Relay) linkError(err error) []byte {
	code, ok := protocol.CodeOf(err)
	if !ok {
		code = protocol.CodeLink
		r.log.Error("relaying failed", "error", err)
	}
	r.metrics.errors.WithLabelValues(code.String()).Inc()
	r.log.Debug("link error", "code", uint8(code), "error", err)
	m := message.LinkError{Code: code}
	var retry protocol.Retry
	if errors.As(err, &retry) {
		m.Retry = uint8(min(255, (max(retry.After, 0)+time.Second-1)/time.Second))
	}
	return m.Marshal()
}

// answer returns the answer to a frame. The relay reads only the frame's kind.
func (r *Relay) answer(p *phone, frame []byte) ([]byte, error) {
	kind, err := message.Kind(frame)
	if err != nil {
		return nil, err
	}
	x := &exchange{ctx: p.calls, link: p.class, frame: frame}
	switch kind {
	case message.KindM1:
		r.metrics.messages.WithLabelValues(kindM1).Inc()
		return r.answerM1(p, x)
	case message.KindM3:
		r.metrics.messages.WithLabelValues(kindM3).Inc()
		return r.answerM3(p, x)
	}
	return nil, protocol.CodeFormat // a device sends these kinds and never receives them
}
