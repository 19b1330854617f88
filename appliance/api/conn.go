package api

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
)

// Bounds of the requests in progress on connections without a certificate. Each request can hold maxJSON bytes.
const (
	strangerRequests = 2   // that every connection may have
	strangerMost     = 16  // of one connection; those beyond strangerRequests come from the stock
	strangerStock    = 128 // that all connections share
)

// conn is an open connection of the API.
type conn struct {
	net.Conn
	door     *door
	number   uint64 // in order of arrival
	accepted time.Time
	verdict  atomic.Pointer[verdict] // on its certificate

	// Guarded by door.mu.
	key      string // of its crowd
	device   bool   // it has a certificate in force
	shaken   bool   // its handshake is done
	requests int    // in progress
	why      string // reason of the close
	gone     bool   // removed from its crowd
	expiry   *time.Timer
}

// idle reports whether a connection has no request and no handshake in progress. door.mu is locked.
func (c *conn) idle() bool { return c.shaken && c.requests == 0 }

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.leave(closedEnd)
	return c.Conn.Close()
}

// cut closes a connection at once, and the kernel drops what it has not sent.
func (c *conn) cut(why string) {
	c.leave(why)
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails if it is closed
	}
	_ = c.Conn.Close() // the peer is gone or has to go
}

// leave takes a connection out of its crowd, once.
func (c *conn) leave(why string) {
	d := c.door
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.gone {
		return
	}
	c.gone = true
	if c.expiry != nil {
		c.expiry.Stop()
	}
	crowd := d.strangers
	if c.device {
		crowd = d.devices
	}
	crowd.remove(c)
	if c.why == "" {
		c.why = why
	}
	d.metrics.closed.WithLabelValues(c.why).Inc()
	d.countLocked()
}

// begin counts a request. It returns false if a stranger has too many in progress. last reports whether its answer is
// the last one on this connection.
func (c *conn) begin() (ok, last bool) {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	if !c.device && c.requests >= strangerRequests {
		if c.requests == strangerMost || c.door.stock == strangerStock {
			return false, false
		}
		c.door.stock++
	}
	c.requests++
	if last = time.Since(c.accepted) >= c.door.times.life; last {
		c.why = closedAge
	}
	return true, last
}

// ends sets the reason for which the connection will close.
func (c *conn) ends(why string) {
	if c == nil {
		return // a test's request without one
	}
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	c.why = why
}

func (c *conn) end() {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	c.requests--
	if !c.device && c.requests >= strangerRequests {
		c.door.stock--
	}
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// endConnection makes an answer the last one on its connection: GOAWAY in HTTP/2, and Connection: close in HTTP/1.1.
// Other requests in progress get their answers.
func endConnection(w http.ResponseWriter) { w.Header().Set("Connection", "close") }

// attended counts the requests of each connection, and ends the connection after its life.
func attended(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := connOf(r.Context())
		ok, last := c.begin()
		if !ok {
			c.door.metrics.busy.WithLabelValues(boundStranger).Inc()
			writeProblem(w, deviceapi.ProblemOf(protocol.Retry{Code: protocol.CodeBusy, After: retryAfter}))
			return
		}
		defer c.end()
		if last {
			endConnection(w)
		}
		h.ServeHTTP(w, r)
	})
}

// siteBits is the length of the prefix of an IPv6 address that one party has: RFC 6177.
const siteBits = 64

// addressOf returns what strangers from an address count against: the IPv4 address, or the /64 of an IPv6 address.
func addressOf(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return a.String()
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	return netip.PrefixFrom(ip, siteBits).Masked().String()
}
