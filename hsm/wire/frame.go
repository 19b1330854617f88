package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// Op is what a request asks for.
type Op byte

// The operations, one for each method of [hsm.Token].
const (
	Sign Op = iota + 1
	Derive
	MAC
	Generate
	Keys
)

var opNames = map[Op]string{Sign: "sign", Derive: "derive", MAC: "mac", Generate: "generate", Keys: "keys"}

// String is the op label of metrics.
func (o Op) String() string { return opNames[o] }

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
	buf = binary.BigEndian.AppendUint32(begin(buf), q.ID)
	buf = binary.BigEndian.AppendUint64(append(buf, byte(q.Op)), uint64(q.Deadline))
	buf = append(buf, q.Key[:]...)
	return end(append(buf, q.Payload...))
}

// readRequest reads into buf, which the request then shares.
func readRequest(r io.Reader, buf []byte) (Request, []byte, error) {
	buf, err := readFrame(r, buf, maxRequest)
	if err != nil {
		return Request{}, buf, err
	}
	in := reader{rest: buf}
	q := Request{ID: in.u32(), Op: Op(in.u8()), Deadline: int64(binary.BigEndian.Uint64(in.bytes(8)))}
	copy(q.Key[:], in.bytes(len(q.Key)))
	q.Payload = in.rest
	if in.bad || q.Op < Sign || q.Op > Keys {
		return q, buf, fmt.Errorf("request of %d bytes, op %d: %w", len(buf), q.Op, ErrFrame)
	}
	return q, buf, nil
}

// Response is one call on its way back.
type Response struct {
	ID      uint32
	Took    time.Duration // inside the token, whole microseconds
	Payload []byte        // nil when Err is set
	Err     error         // wraps a sentinel of package hsm, or [ErrLost]
}

// append writes the response as a frame over buf and returns it.
func (p Response) append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint32(begin(buf), p.ID)
	buf = append(buf, byte(statusOf(p.Err)))
	buf = binary.BigEndian.AppendUint32(buf, uint32(min(p.Took.Microseconds(), 1<<32-1)))
	if p.Err != nil {
		return end(append(buf, clip(p.Err.Error())...))
	}
	return end(append(buf, p.Payload...))
}

// ReadResponse reads one response; buf is scratch space and returned for the
// next call. The payload is the caller's.
func ReadResponse(r io.Reader, buf []byte) (Response, []byte, error) {
	buf, err := readFrame(r, buf, maxResponse)
	if err != nil {
		return Response{}, buf, err
	}
	in := reader{rest: buf}
	p := Response{ID: in.u32()}
	s := status(in.u8())
	p.Took = time.Duration(in.u32()) * time.Microsecond
	if in.bad {
		return p, buf, fmt.Errorf("response of %d bytes: %w", len(buf), ErrFrame)
	}
	if s == ok {
		p.Payload = append(make([]byte, 0, len(in.rest)), in.rest...)
	} else {
		p.Err = remote(s, in.rest)
	}
	return p, buf, nil
}

// AppendSpec writes the payload of a generate request.
func AppendSpec(buf []byte, spec hsm.KeySpec) []byte {
	return append(append(buf, byte(spec.Usage)), spec.Label...)
}

func parseSpec(b []byte) hsm.KeySpec {
	if len(b) == 0 {
		return hsm.KeySpec{}
	}
	return hsm.KeySpec{Usage: hsm.Usage(b[0]), Label: string(b[1:])}
}

func appendKey(buf []byte, k hsm.Key) []byte {
	buf = append(append(buf, k.ID[:]...), byte(k.Usage))
	return appendText(appendText(buf, k.Label), k.Public)
}

// ParseKeys reads the payload of a generate or keys response, which is the
// keys one after the other. A public point of a length other than 0 and 65 is
// [ErrFrame], as is anything left over.
func ParseKeys(b []byte) ([]hsm.Key, error) {
	in, keys := reader{rest: b}, []hsm.Key{}
	for len(in.rest) > 0 && !in.bad {
		var k hsm.Key
		copy(k.ID[:], in.bytes(len(k.ID)))
		k.Usage, k.Label = hsm.Usage(in.u8()), string(in.text())
		if public := in.text(); len(public) > 0 {
			k.Public = append(k.Public, public...)
			in.bad = in.bad || len(public) != border.PointLen
		}
		keys = append(keys, k)
	}
	if err := in.done(); err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	return keys, nil
}
