// Package tamper is the attacker on the wire link: a proxy that records every
// message between phones and a device, and alters, drops or cuts off the one it is
// told to.
package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"countersign/protocol/message"
)

// Action is the treatment of a message.
type Action int

// The actions.
const (
	Alter Action = iota // one bit is changed
	Drop                // the message is swallowed, the link stays
	Cut                 // the link is closed in place of forwarding the message
)

// Rule is for the next message of one kind, and then over.
type Rule struct {
	Kind   byte // high nibble of byte 0, such as [message.KindM2]
	Action Action
	Bit    int // to alter; bit 0 is the highest of byte 0, -1 the lowest of the last byte
}

// Frame is a recorded message, as its sender made it.
type Frame struct {
	FromPhone bool
	Message   []byte
}

// Kind is the high nibble of byte 0.
func (f Frame) Kind() byte { return f.Message[0] >> 4 }

// Proxy listens where phones connect and forwards to a device. It is safe for
// concurrent use.
type Proxy struct {
	listener net.Listener
	links    sync.WaitGroup

	mu     sync.Mutex // guards what follows
	target string
	rules  []Rule
	frames []Frame
	open   map[net.Conn]bool
	closed bool
}

// New listens on a loopback port in front of a link. The caller calls Close.
func NewProxy(target string) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("tampering proxy: %w", err)
	}
	p := &Proxy{target: target, listener: listener, open: map[net.Conn]bool{}}
	p.links.Go(p.accept)
	return p, nil
}

// Link is where phones connect.
func (p *Proxy) Link() string { return "tcp:" + p.listener.Addr().String() }

// Retarget forwards new links to another address, such as the address of a restarted device.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

func (p *Proxy) device() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target
}

// Next adds a rule.
func (p *Proxy) Next(r Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, r)
}

// Reset forgets rules and recordings.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules, p.frames = nil, nil
}

// Frames are all messages since the last Reset, in order.
func (p *Proxy) Frames() []Frame {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.frames)
}

// Last is the newest recorded message of a kind, nil if there is none.
func (p *Proxy) Last(kind byte) []byte {
	for _, f := range slices.Backward(p.Frames()) {
		if f.Kind() == kind {
			return f.Message
		}
	}
	return nil
}

// Replay sends a recorded message to the device once more, on a link of its own,
// and gives the answer.
func (p *Proxy) Replay(ctx context.Context, msg []byte) ([]byte, error) {
	return Ask(ctx, p.device(), msg)
}

// Close ends all links.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	for conn := range p.open {
		_ = conn.Close() // its own goroutines see that
	}
	p.mu.Unlock()
	err := p.listener.Close()
	p.links.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.links.Go(func() { p.serve(conn) })
	}
}

// serve runs one link until either side ends it.
func (p *Proxy) serve(phone net.Conn) {
	device, err := Dial(context.Background(), p.device())
	if err != nil {
		_ = phone.Close() // the phone sees a link that ends
		return
	}
	if !p.join(phone, device.Conn) {
		return
	}
	end := func() { p.leave(phone, device.Conn) }
	var pumps sync.WaitGroup
	pumps.Go(func() { defer end(); p.pump(half{from: phone, to: device.Conn, fromPhone: true}) })
	pumps.Go(func() { defer end(); p.pump(half{from: device.Conn, to: phone}) })
	pumps.Wait()
}

func (p *Proxy) join(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.closed {
			_ = c.Close() // it is not used yet
			continue
		}
		p.open[c] = true
	}
	return !p.closed
}

func (p *Proxy) leave(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // a second Close is no harm
		delete(p.open, c)
	}
}

// half is one direction of a link.
type half struct {
	from, to  net.Conn
	fromPhone bool
}

func (p *Proxy) pump(h half) {
	for {
		msg, err := message.ReadFrame(h.from)
		if err != nil {
			return
		}
		forward, err := p.judge(Frame{FromPhone: h.fromPhone, Message: msg})
		if err != nil {
			return
		}
		if forward != nil && message.WriteFrame(h.to, forward) != nil {
			return
		}
	}
}

var errCut = errors.New("cut")

// judge records a message and returns the message to forward in its place, nil for none.
func (p *Proxy) judge(f Frame) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frames = append(p.frames, f)
	i := slices.IndexFunc(p.rules, func(r Rule) bool { return r.Kind == f.Kind() })
	if i < 0 {
		return f.Message, nil
	}
	rule := p.rules[i]
	p.rules = slices.Delete(p.rules, i, i+1)
	switch rule.Action {
	case Drop:
		return nil, nil
	case Cut:
		return nil, errCut
	default:
		return Flip(f.Message, rule.Bit), nil
	}
}

// Flip gives a copy with one bit changed. Bit 0 is the highest of byte 0, -1 the
// lowest of the last byte.
func Flip(msg []byte, bit int) []byte {
	out := slices.Clone(msg)
	if bit < 0 {
		bit += 8 * len(out)
	}
	out[bit/8] ^= 0x80 >> (bit % 8)
	return out
}
