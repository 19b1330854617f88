package connections

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"sync"
	"syscall"
	"time"

	"countersign/softhsm-test/harness"
)

// strangers are connections to the appliance without a certificate. Nothing reads from them, so a connection that the
// appliance has closed is still in the list.
type strangers struct {
	target string // HOST:PORT
	others int    // addresses of 127/8 beside the honest device's own

	mu   sync.Mutex
	open []net.Conn // guarded by mu
}

// openers is how many connections are made at once.
const openers = 16

func newStrangers(apiURL string, others int) *strangers {
	return &strangers{target: harness.Must(url.Parse(apiURL)).Host, others: others}
}

// address returns the local address of connection i: the honest device's own is the first.
func (s *strangers) address(i int) net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i%(1+s.others)))}
}

// greeting is what a stranger does with its new connection.
type greeting func(net.Conn) error

// crowd opens n connections and greets on each. It returns how many were cut before they had greeted.
func (s *strangers) crowd(ctx context.Context, n int, greet greeting) (cut int) {
	var mu sync.Mutex
	harness.Each(n, openers, func(i int) {
		c, err := s.dial(ctx, i)
		if err == nil {
			s.mu.Lock()
			s.open = append(s.open, c)
			s.mu.Unlock()
			err = greet(c)
		}
		if err != nil {
			mu.Lock()
			cut++
			mu.Unlock()
		}
	})
	return cut
}

func (s *strangers) dial(ctx context.Context, i int) (net.Conn, error) {
	d := net.Dialer{LocalAddr: s.address(i), Timeout: 10 * time.Second, KeepAlive: -1}
	return d.DialContext(ctx, "tcp", s.target)
}

// leave closes all connections. They are reset, so that their ports are free at once.
func (s *strangers) leave() {
	for _, c := range s.open {
		_ = c.(*net.TCPConn).SetLinger(0) // fails if it was reset
		_ = c.Close()                     // the appliance may have closed it
	}
	s.open = nil
}

// greetingLimit bounds a greeting.
const greetingLimit = 10 * time.Second

// silent says nothing: the handshake does not begin.
func silent(net.Conn) error { return nil }

// shaken makes the handshake without a certificate and says nothing more. Afterwards only the descriptor is kept.
func shaken(c net.Conn) error { return shake(c, "http/1.1", nil) }

// settled is an HTTP/2 connection without a request, which the appliance keeps for its idle timeout.
func settled(c net.Conn) error {
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // RFC 9113 §6.5: empty
	return shake(c, "h2", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings))
}

// slow has begun a request and does not end its header.
func slow(c net.Conn) error {
	return shake(c, "http/1.1", []byte("POST /v1/enrol HTTP/1.1\r\nHost: x\r\nX-Slow: "))
}

func shake(c net.Conn, protocol string, words []byte) error {
	harness.Do(c.SetDeadline(time.Now().Add(greetingLimit)))
	t := tls.Client(c, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol},
		InsecureSkipVerify: true, //nolint:gosec // an attacker does not verify
	})
	if err := t.Handshake(); err != nil {
		return err
	}
	_, err := t.Write(words)
	return err
}

// old asks for TLS 1.2.
func old(c net.Conn) error {
	harness.Do(c.SetDeadline(time.Now().Add(greetingLimit)))
	t := tls.Client(c, &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, //nolint:gosec // G402: that it is refused is the test
		InsecureSkipVerify: true, //nolint:gosec // an attacker does not verify
	})
	return t.Handshake()
}

// needFiles fails if this process may not open so many descriptors. The Go runtime has raised the soft limit.
func needFiles(n uint64) {
	var limit syscall.Rlimit
	harness.Do(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	if limit.Cur < n {
		harness.Do(fmt.Errorf("this machine allows %d open files, the test needs %d", limit.Cur, n))
	}
}
