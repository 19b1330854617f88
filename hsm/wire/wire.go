// Package wire is what the appliance and its hsm-worker say to each other over
// a socketpair. Both ends are on one host and of one build, so there is no
// negotiation: a frame that does not parse ends the conversation.
//
// Every frame is a length and a body; integers are big-endian, "text" is a
// 2-byte length and that many bytes.
//
//	frame     length(4) body(length)
//
//	config    version(1) = 1, module(text), token label(text),
//	          token serial(text), pin(text), sessions(2)
//	hello     status(1), message(text)                      when status ≠ 0
//	          status(1), n(1), n × notice(text)             when status = 0
//
//	request   id(4) op(1) deadline(8) key(20) payload
//	response  id(4) status(1) took(4) payload
//
// The parent sends one config, the child answers one hello, then requests and
// responses follow, responses in any order. deadline is CLOCK_MONOTONIC in
// nanoseconds, which processes of one host share; took is the time inside the
// token in microseconds. The payload of a response with status ≠ 0 is the text
// of the error.
//
//	op            request payload         response payload
//	1 sign        digest(32)              r‖s(64)
//	2 derive      peer point(65)          Z(32)
//	3 mac         data(0–65536)           MAC(32)
//	4 generate    usage(1) label          key
//	5 keys        –                       key*
//
//	key           id(20) usage(1) label(text) public(text), 0 or 65 bytes
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Limits in bytes of the body of a frame.
const (
	maxRequest  = 66 << 10
	maxResponse = 4 << 20
)

// ErrFrame: the other side sent what is no frame of this protocol.
var ErrFrame = errors.New("malformed frame")

// Now is CLOCK_MONOTONIC in nanoseconds, the clock of [Request.Deadline].
func Now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

// begin leaves room for the length, end fills it in.
func begin(buf []byte) []byte { return append(buf[:0], 0, 0, 0, 0) }

func end(buf []byte) []byte {
	binary.BigEndian.PutUint32(buf, uint32(len(buf)-4))
	return buf
}

// readFrame reads a body of at most limit bytes into buf, growing it as needed.
func readFrame(r io.Reader, buf []byte, limit uint32) ([]byte, error) {
	buf = append(buf[:0], 0, 0, 0, 0)
	if _, err := io.ReadFull(r, buf); err != nil {
		return buf, err
	}
	n := binary.BigEndian.Uint32(buf)
	if n > limit {
		return buf, fmt.Errorf("body of %d bytes, at most %d: %w", n, limit, ErrFrame)
	}
	if uint32(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return buf, fmt.Errorf("frame cut short: %w", ErrFrame)
	}
	return buf, nil
}

func appendText[T ~string | ~[]byte](buf []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint16(buf, uint16(len(s))), s...)
}

// reader takes a body apart; after the first short read it yields zeros and
// done reports it, as it does for bytes left over.
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
