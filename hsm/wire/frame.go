package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"countersign/hsm"
)

// Request is one call on its way to the child.
type Request struct {
	ID       uint32
	Op       Op
	Deadline int64 // of [Now]
	Key      hsm.KeyID
	Payload  []byte
}

// Append writes the request as a frame over buf and returns it.
func (q Request) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf[:0], q.ID)
	buf = binary.BigEndian.AppendUint64(append(buf, byte(q.Op)), uint64(q.Deadline))
	buf = append(buf, q.Key[:]...)
	return append(buf, q.Payload...)
}

// parseRequest shares b with the request.
func parseRequest(b []byte) (Request, error) {
	in := reader{rest: b}
	q := Request{ID: in.u32(), Op: Op(in.u8()), Deadline: int64(binary.BigEndian.Uint64(in.bytes(8)))}
	copy(q.Key[:], in.bytes(len(q.Key)))
	q.Payload = in.rest
	if in.bad || q.Op < Sign || q.Op > LastOp {
		return q, fmt.Errorf("request of %d bytes, op %d: %w", len(b), q.Op, ErrFrame)
	}
	return q, nil
}

// Response is one call on its way back.
type Response struct {
	ID      uint32
	Took    time.Duration // inside the token
	Payload []byte        // nil when Err is set
	More    bool          // the payload goes on in the next response with this ID
	Err     error         // wraps a sentinel of package hsm, or [ErrLost]
}

// append writes the response as a frame over buf and returns it.
func (p Response) append(buf []byte) []byte {
	s := statusOf(p.Err)
	if p.More {
		s = more
	}
	buf = append(binary.BigEndian.AppendUint32(buf[:0], p.ID), byte(s))
	buf = binary.BigEndian.AppendUint64(buf, uint64(p.Took))
	if p.Err != nil {
		return append(buf, clip(p.Err.Error())...)
	}
	return append(buf, p.Payload...)
}

// write sends the response in as many frames as it takes. It makes them in
// buf, which it returns erased.
func (p Response) write(w io.Writer, buf []byte) ([]byte, error) {
	part := p
	for rest := p.Payload; ; rest = rest[maxChunk:] {
		part.More = len(rest) > maxChunk
		part.Payload = rest[:min(len(rest), maxChunk)]
		buf = part.append(buf)
		_, err := w.Write(buf)
		clear(buf)
		if err != nil || !part.More {
			return buf, err
		}
	}
}

// ReadResponse reads one response through buf, which [Buffer] made and which
// is erased afterwards. The payload is the caller's.
func ReadResponse(r io.Reader, buf []byte) (Response, error) {
	b, err := readFrame(r, buf)
	if err != nil {
		return Response{}, err
	}
	defer clear(b) // a secret may be in it
	return parseResponse(b)
}

func parseResponse(b []byte) (Response, error) {
	in := reader{rest: b}
	p := Response{ID: in.u32()}
	s := status(in.u8())
	p.Took = time.Duration(binary.BigEndian.Uint64(in.bytes(8)))
	if in.bad || p.Took < 0 {
		return p, fmt.Errorf("response of %d bytes: %w", len(b), ErrFrame)
	}
	if p.More = s == more; p.More || s == ok {
		p.Payload = append(make([]byte, 0, len(in.rest)), in.rest...)
	} else {
		p.Err = remote(s, in.rest)
	}
	return p, nil
}
