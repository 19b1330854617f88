// Package link implements the near-field link over TCP or a Unix socket, PROTOCOL.md §5. A frame
// is
//
//	length, 2 bytes big-endian | message, 1 to 2,048 bytes
package link

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"countersign/protocol/message"
)

var errAddress = errors.New("want tcp:HOST:PORT or unix:/PATH")

// split returns the network and address for package net.
func split(addr string) (network, target string, err error) {
	network, target, _ = strings.Cut(addr, ":")
	if network != "tcp" && network != "unix" || target == "" {
		return "", "", fmt.Errorf("link address %q: %w", addr, errAddress)
	}
	return network, target, nil
}

// Listener accepts links.
type Listener struct{ inner net.Listener }

// Listen opens "tcp:HOST:PORT", where the system chooses port 0, or "unix:/PATH". It replaces
// the socket file of a dead process; a socket in use is an error.
func Listen(addr string) (*Listener, error) {
	network, target, err := split(addr)
	if err != nil {
		return nil, err
	}
	inner, err := listen(network, target)
	if err != nil {
		return nil, err
	}
	return &Listener{inner}, nil
}

// ListenPrivate opens a Unix socket of mode 0600, for programs of the same user, without
// frames. It treats an existing socket file as [Listen] does.
func ListenPrivate(path string) (net.Listener, error) {
	inner, err := listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listening on %s: %w", path, err), inner.Close())
	}
	return inner, nil
}

// maxSocketPath is the longest path of a Unix socket, in bytes: unix(7).
const maxSocketPath = 107

func listen(network, target string) (net.Listener, error) {
	if network == "unix" && len(target) > maxSocketPath {
		return nil, fmt.Errorf("listening on unix:%s: the path has %d bytes: want at most %d bytes",
			target, len(target), maxSocketPath)
	}
	inner, err := net.Listen(network, target)
	if network == "unix" && errors.Is(err, syscall.EADDRINUSE) && abandoned(target) {
		inner, err = net.Listen(network, target)
	}
	if err != nil {
		return nil, fmt.Errorf("listening on %s:%s: %w", network, target, err)
	}
	return inner, nil
}

// abandoned removes a socket file without a listener and reports whether it did.
func abandoned(path string) bool {
	probe, err := net.Dial("unix", path)
	if err == nil {
		_ = probe.Close()
		return false
	}
	info, statErr := os.Lstat(path)
	isSocket := statErr == nil && info.Mode()&os.ModeSocket != 0
	return isSocket && errors.Is(err, syscall.ECONNREFUSED) && os.Remove(path) == nil
}

// Accept waits for the next link. After Close it returns [net.ErrClosed].
func (l *Listener) Accept() (*Conn, error) {
	inner, err := l.inner.Accept()
	if err != nil {
		return nil, fmt.Errorf("accepting a link: %w", err)
	}
	return newConn(inner), nil
}

// Addr returns the address to dial, with the port that the system chose.
func (l *Listener) Addr() string {
	return l.inner.Addr().Network() + ":" + l.inner.Addr().String()
}

// Close stops listening and removes the socket file of a Unix address.
func (l *Listener) Close() error { return l.inner.Close() }

// Timeouts limit how long a peer can hold up a call. Zero means no limit.
type Timeouts struct {
	Receive time.Duration // for a whole message to arrive, including the wait for it
	Send    time.Duration // for a whole message
}

// Conn is one link. One Send and one Receive may run concurrently.
type Conn struct {
	inner    net.Conn
	in       *bufio.Reader
	timeouts Timeouts
	closing  sync.Once
	stopped  atomic.Bool
}

func newConn(inner net.Conn) *Conn {
	return &Conn{inner: inner, in: bufio.NewReaderSize(inner, 512)}
}

// Dial connects to an address from [Listener.Addr]. ctx limits only the dialling.
func Dial(ctx context.Context, addr string) (*Conn, error) {
	network, target, err := split(addr)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	inner, err := d.DialContext(ctx, network, target)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", addr, err)
	}
	return newConn(inner), nil
}

// SetTimeouts sets the limits of later calls; there are none before.
func (c *Conn) SetTimeouts(t Timeouts) { c.timeouts = t }

// Send writes one message of 1 to 2,048 bytes: [protocol.CodeFormat] for another length,
// [os.ErrDeadlineExceeded] after the timeout.
func (c *Conn) Send(msg []byte) error {
	if err := c.inner.SetWriteDeadline(deadline(c.timeouts.Send)); err != nil {
		return fmt.Errorf("sending on the link: %w", err)
	}
	if err := message.WriteFrame(c.inner, msg); err != nil {
		return fmt.Errorf("sending on the link: %w", err)
	}
	return nil
}

// Receive reads one message. A length out of bounds is [protocol.CodeFormat] and makes the link
// unusable; the end of the link is [io.EOF], or [io.ErrUnexpectedEOF] within a message; the
// timeout is [os.ErrDeadlineExceeded].
func (c *Conn) Receive() ([]byte, error) {
	if err := c.inner.SetReadDeadline(deadline(c.timeouts.Receive)); err != nil {
		return nil, fmt.Errorf("receiving on the link: %w", err)
	}
	if c.stopped.Load() { // checked after the deadline is set, which could undo Stop
		return nil, fmt.Errorf("receiving on the link: %w", os.ErrDeadlineExceeded)
	}
	msg, err := message.ReadFrame(c.in)
	if err != nil {
		return nil, fmt.Errorf("receiving on the link: %w", err)
	}
	return msg, nil
}

func deadline(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// Close closes the link; a waiting Receive or Send returns. Later calls have no effect.
func (c *Conn) Close() (err error) {
	c.closing.Do(func() { err = c.inner.Close() })
	return err
}

// Stop ends a waiting Receive, and every later one, with [os.ErrDeadlineExceeded]. It does not
// interrupt Send.
func (c *Conn) Stop() {
	c.stopped.Store(true)
	_ = c.inner.SetReadDeadline(time.Now()) // an error means that the link is closed
}
