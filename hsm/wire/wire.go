// Package wire implements the protocol between the appliance and its hsm-worker over a
// socketpair. Both ends are on one host and of one build, so there is no
// negotiation: a malformed frame ends the connection.
//
// Every frame is one message of a [Socket]; integers are big-endian, "text" is
// a 2-byte length and that many bytes.
//
//	config    version(1) = 3, module(text), token label(text),
//	          token serial(text), pin(text), sessions(2),
//	          init args(text), n(1), n × required usage(1)
//	hello     status(1), message(text)                      when status ≠ 0
//	          status(1), n(1), n × notice(text)             when status = 0
//
//	request   id(4) op(1) deadline(8) key(20) payload
//	response  id(4) status(1) took(8) payload
//
// The parent sends one config, the child answers one hello, then requests and
// responses follow, responses in any order. deadline is CLOCK_MONOTONIC in
// nanoseconds, which processes of one host share; took is the time inside the
// token in nanoseconds. The payload of a response with status ≠ 0 is the text
// of the error. A payload of more than 64 KiB comes in several responses with
// one id, all but the last with status 255.
//
//	op             key      request payload         response payload
//	1 sign         signs    alg(1) input(0–65536)   signature
//	2 derive       derives  peer point(65)          Z(32)
//	3 mac          MACs     data(0–65536)           MAC(32)
//	4 import       enrol    wrap key(20) ephemeral  wrapped(40)
//	                        point(65) context(32)
//	                        wrapped(40)
//	5 mac-wrapped  wrap     wrapped(40)             MAC(32)
//	                        data(0–65536)
//	6 generate     –        usage(1) label(text)    key
//	                        n(1) n × point(65)
//	7 keys         –        –                       key*
//	8 restore     with     usage(1) label(text)    key
//	                        id(20) public(text)
//	                        sealed
//	9 adopt       –        usage(1) label(text)    key
//	                        private key(32)
//	10 destroy     it       –                       –
//	11 store-      its      label(text) DER         –
//	certificate
//	12 certifi-    –        –                       certificate*
//	cates
//	13 rewrap      from     wrap key(20)            wrapped(40)
//	                        wrapped(40)
//	14 objects     –        –                       object*
//
//	key           id(20) usage(1) label(text) public(text)
//	              n(1) n × sealed(text)
//	certificate   key(20) label(text) DER(text)
//	object        class(text) key type(text) id(text) label(text)
//	              true(4) told(4) n(2) n × mechanism(text)
//
// A public key is a SubjectPublicKeyInfo whose hash begins with the id, or empty.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"countersign/hsm"
)

// Limits in bytes.
const (
	maxFrame = 66 << 10
	maxChunk = 64 << 10 // of a payload in one response
	// MaxPayload is the limit of a payload in several responses.
	MaxPayload = 4 << 20
)

// ErrFrame: the other side sent a malformed frame.
var ErrFrame = errors.New("malformed frame")

// Buffer returns room for one frame, and for the byte that shows that one is too long.
func Buffer() []byte { return make([]byte, maxFrame+1) }

// readFrame reads one frame into buf, which [Buffer] made.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	n, err := r.Read(buf)
	if err != nil {
		return nil, err
	}
	if n > maxFrame {
		return nil, fmt.Errorf("frame of more than %d bytes: %w", maxFrame, ErrFrame)
	}
	return buf[:n], nil
}

func appendText[T ~string | ~[]byte](buf []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint16(buf, uint16(len(s))), s...)
}

// reader decodes a body. After the first short read it returns zeros, and done returns an
// error, as it does for remaining bytes.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.rest) {
		r.bad = true
		return make([]byte, n)
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u8() byte     { return r.bytes(1)[0] }
func (r *reader) u16() int     { return int(binary.BigEndian.Uint16(r.bytes(2))) }
func (r *reader) u32() uint32  { return binary.BigEndian.Uint32(r.bytes(4)) }
func (r *reader) text() []byte { return r.bytes(r.u16()) }

func (r *reader) done() error {
	if r.bad || len(r.rest) > 0 {
		return ErrFrame
	}
	return nil
}

// Now returns CLOCK_MONOTONIC in nanoseconds, the clock of [Request.Deadline]. It asks the
// runtime, which reads the same clock without a system call.
func Now() int64 { return origin.clock + int64(time.Since(origin.at)) }

// anchor is one moment on both clocks.
type anchor struct {
	at    time.Time
	clock int64
}

var origin = synchronize()

// synchronize reads one clock between two readings of the other, and keeps the attempt in
// which those were closest: a thread may be suspended between them.
func synchronize() (best anchor) {
	closest := time.Hour
	for range 8 {
		before := time.Now()
		clock := monotonic()
		if d := time.Since(before); d < closest {
			closest, best = d, anchor{before.Add(d / 2), clock}
		}
	}
	return best
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

// status is the code of an error in a frame.
type status byte

const (
	ok status = iota
	unavailable
	pin
	key
	exists
	input
	lost // the worker is about to exit; another one may answer
	garbled
	unsupported

	more status = 255 // no error, and not all of the payload
)

// ErrLost: the worker lost its token while it held the request, and exits. It wraps
// [hsm.ErrUnavailable].
var ErrLost error = &remoteError{"worker lost its token", hsm.ErrUnavailable}

// sentinels maps statuses to errors; any other error is unavailable.
var sentinels = map[status]error{
	unavailable: hsm.ErrUnavailable, pin: hsm.ErrPIN, key: hsm.ErrKey,
	exists: hsm.ErrExists, input: hsm.ErrInput, lost: ErrLost,
	unsupported: hsm.ErrUnsupported, garbled: hsm.ErrGarbled,
}

func statusOf(err error) status {
	if err == nil {
		return ok
	}
	for _, s := range []status{lost, garbled, pin, key, exists, input, unsupported} {
		if errors.Is(err, sentinels[s]) {
			return s
		}
	}
	return unavailable
}

// remoteError has the text of the child and the sentinel of its status.
type remoteError struct {
	text     string
	sentinel error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }

func remote(s status, text []byte) error {
	sentinel, known := sentinels[s]
	if !known {
		sentinel = hsm.ErrUnavailable
	}
	return &remoteError{clip(string(text)), sentinel}
}

// clip bounds a text for the log.
func clip(s string) string { return s[:min(len(s), 1024)] }
