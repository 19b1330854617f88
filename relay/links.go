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

// phone is one link in use.
type phone struct {
	conn    *link.Conn
	class   deviceapi.LinkClass
	session *session // of the M1 that was last accepted on this link; nil: none yet
}

// accept serves the phones that connect, each on its own, until the listener is
// closed, and waits for them.
func (r *Relay) accept(ctx context.Context, l *link.Listener, class deviceapi.LinkClass) {
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
		select {
		case r.slots <- struct{}{}:
			phones.Go(func() {
				defer func() { <-r.slots }()
				r.serve(ctx, &phone{conn: conn, class: class})
			})
		default:
			r.turnAway(conn)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// turnAway tells a phone that the device is busy. It does not wait: the message
// fits into any buffer.
func (r *Relay) turnAway(conn *link.Conn) {
	conn.SetTimeouts(link.Timeouts{Send: time.Second})
	r.sendError(&phone{conn: conn}, protocol.Retry{Code: protocol.CodeLinkBusy, After: busyPause})
	_ = conn.Close()
}

// serve answers one phone, message by message, until it leaves, is idle for too
// long or says what is no message.
func (r *Relay) serve(ctx context.Context, p *phone) {
	r.metrics.links.Inc()
	defer r.metrics.links.Dec()
	defer func() { _ = p.conn.Close() }()
	if !r.table.join(p) {
		return
	}
	defer r.table.leave(p)
	p.conn.SetTimeouts(link.Timeouts{Receive: r.config.Idle, Send: r.config.Send})
	for {
		msg, err := p.conn.Receive()
		if errors.Is(err, protocol.CodeFormat) {
			r.sendError(p, protocol.CodeFormat)
		}
		if err != nil {
			r.ended(err)
			return
		}
		answer, err := r.answer(ctx, p, msg)
		if err != nil {
			answer = r.linkError(err)
		}
		if err := p.conn.Send(answer); err != nil {
			r.ended(err)
			return
		}
	}
}

// ended logs the end of a link where it is not the usual one.
func (r *Relay) ended(err error) {
	usual := errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
	if !usual {
		r.log.Debug("link ended", "error", err)
	}
}

func (r *Relay) sendError(p *phone, err error) {
	if err := p.conn.Send(r.linkError(err)); err != nil {
		r.ended(err)
	}
}

// linkError makes the ME for an error; one without a code is no fault of the
// phone's.
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

// answer makes the message that goes back for one that came in. Only its kind is
// looked at.
func (r *Relay) answer(ctx context.Context, p *phone, msg []byte) ([]byte, error) {
	kind, err := message.Kind(msg)
	if err != nil {
		return nil, err
	}
	switch kind {
	case message.KindM1:
		r.metrics.messages.WithLabelValues("m1").Inc()
		return r.apply(ctx, p, msg)
	case message.KindM3:
		r.metrics.messages.WithLabelValues("m3").Inc()
		return r.countersign(ctx, p, msg)
	}
	return nil, protocol.CodeFormat // one that a device sends, never gets
}
