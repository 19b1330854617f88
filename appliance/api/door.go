package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// door is the listener of the API. It accepts connections, makes the TLS handshakes, and bounds how many connections
// are open. A connection is a stranger's from the moment at which it is accepted until its handshake has proved a
// certificate that is in force. Strangers count against their address. A connection with a certificate counts against
// its identity alone, because devices share addresses.
type door struct {
	listener net.Listener
	identity *Identity
	metrics  *Metrics
	times    times
	log      hclog.Logger
	ready    chan *tls.Conn // with a finished handshake
	closed   chan struct{}
	close    sync.Once

	mu        sync.Mutex // guards the following fields, and the fields of conn that name it
	strangers *crowd
	devices   *crowd
	accepted  uint64
	stock     int // requests of strangers beyond those that each may have
}

// times bound a connection.
type times struct {
	shake time.Duration // for the handshake
	life  time.Duration // after it, the next answer is the last one
	idle  time.Duration // without a request
	grace time.Duration // after life and idle, until it is cut: longer than any request
}

// connLife is the life of a connection.
const connLife = time.Hour

// usual are the times of a [Server], except in tests.
var usual = times{shake: headerTimeout, life: connLife, idle: idleTimeout, grace: readTimeout + writeTimeout}

// newDoor accepts connections until it is closed.
func newDoor(s Server, log hclog.Logger) *door {
	d := &door{
		listener: s.Listener, identity: s.Identity, metrics: s.Metrics, times: s.times, log: log,
		ready: make(chan *tls.Conn), closed: make(chan struct{}),
		strangers: newCrowd(s.Limits.Strangers, s.Limits.PerAddress), devices: newCrowd(s.Limits.Devices, s.Limits.PerDevice),
	}
	d.devices.patient = true
	go d.run()
	return d
}

// Accept returns a connection whose handshake is done. It implements [net.Listener].
func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.ready:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *door) Addr() net.Addr { return d.listener.Addr() }

// Close closes the listener, and the connections whose handshake is not done.
func (d *door) Close() (err error) {
	d.close.Do(func() {
		close(d.closed)
		err = d.listener.Close()
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, list := range d.strangers.byKey {
			for _, c := range list {
				if !c.shaken {
					_ = c.Conn.Close() // the peer learns nothing else
				}
			}
		}
	})
	return err
}

// acceptPause is the wait after the kernel had no room for a connection.
const acceptPause = 50 * time.Millisecond

func (d *door) run() {
	for {
		raw, err := d.listener.Accept()
		switch {
		case err == nil:
			d.admit(raw)
		case lacksRoom(err):
			d.log.Error("connection was not accepted", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-d.closed:
			}
		default:
			_ = d.Close() // it is closed already, or of no more use
			return
		}
	}
}

// lacksRoom reports whether a later Accept may succeed: accept(2).
func lacksRoom(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// admit lets a stranger in, before anything is read or computed for it.
func (d *door) admit(raw net.Conn) {
	c := &conn{Conn: raw, door: d, key: addressOf(raw.RemoteAddr()), accepted: time.Now()}
	d.mu.Lock()
	d.accepted++
	c.number = d.accepted
	leaves := d.strangers.admit(c)
	d.countLocked()
	d.mu.Unlock()
	if leaves != nil {
		leaves.cut(closedFull)
	}
	go d.shake(c)
}

// shake makes the handshake. crypto/tls proves the certificate only in its last step, so a callback during the
// handshake would believe a peer that has seen a device's certificate.
func (d *door) shake(c *conn) {
	_ = c.SetDeadline(c.accepted.Add(d.times.shake)) // fails if it was cut, and so does the handshake
	t, err := d.handshake(c)
	if err != nil {
		d.log.Debug("TLS handshake failed", "peer", c.RemoteAddr().String(), "error", err)
		answerPlain(err)
		c.leave(closedHandshake)
		_ = c.Conn.Close() // after the alert
		return
	}
	_ = c.SetDeadline(time.Time{})
	if leaves := d.enter(c, t.ConnectionState().VerifiedChains); leaves != nil {
		leaves.cut(closedFull)
		if leaves == c {
			return
		}
	}
	select {
	case d.ready <- t:
	case <-d.closed:
		_ = c.Close()
	}
}

func (d *door) handshake(c *conn) (*tls.Conn, error) {
	config, err := d.identity.config()
	if err != nil {
		return nil, err
	}
	t := tls.Server(c, config)
	return t, t.Handshake()
}

// enter ends the handshake of a connection. With a certificate in force, the connection no longer counts as a stranger's.
func (d *door) enter(c *conn, chains [][]*x509.Certificate) (leaves *conn) {
	name := nameOf(chains)
	known := name != "" && d.identity.judge(c, chains) == nil
	d.mu.Lock()
	defer d.mu.Unlock()
	c.shaken = true
	if c.gone {
		return nil
	}
	c.expiry = time.AfterFunc(d.times.life+d.times.idle+d.times.grace, func() { c.cut(closedAge) })
	if !known {
		return nil
	}
	d.strangers.remove(c)
	c.key, c.device = name, true
	leaves = d.devices.admit(c)
	d.countLocked()
	return leaves
}

// nameOf returns the SPIFFE ID of a verified certificate, or "" if it has not exactly one.
func nameOf(chains [][]*x509.Certificate) string {
	if len(chains) == 0 || len(chains[0][0].URIs) != 1 {
		return ""
	}
	return chains[0][0].URIs[0].String()
}

func (d *door) countLocked() { d.metrics.count(d.strangers.size, d.devices.size) }

// answerPlain answers a peer that speaks HTTP without TLS.
func answerPlain(err error) {
	var header tls.RecordHeaderError
	if !errors.As(err, &header) || header.Conn == nil {
		return
	}
	switch string(header.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		_, _ = io.WriteString(header.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nThis is an HTTPS server: use https://.\n")
	}
}
