package wire

import (
	"crypto/ecdh"
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
	Import
	MACWrapped
	Generate
	Keys
)

var opNames = map[Op]string{
	Sign: "sign", Derive: "derive", MAC: "mac", Import: "import", MACWrapped: "mac-wrapped",
	Generate: "generate", Keys: "keys",
}

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
	if in.bad || q.Op < Sign || q.Op > Keys {
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

// AppendImport writes the payload of an import request, whose key is i.Enrol.
func AppendImport(buf []byte, i hsm.Import) []byte {
	buf = append(append(buf, i.Wrap[:]...), i.Ephemeral.Bytes()...)
	return append(append(buf, i.Context[:]...), i.Wrapped...)
}

func parseImport(q Request) (hsm.Import, error) {
	in, i := reader{rest: q.Payload}, hsm.Import{Enrol: q.Key}
	copy(i.Wrap[:], in.bytes(len(i.Wrap)))
	point := in.bytes(border.PointLen)
	copy(i.Context[:], in.bytes(len(i.Context)))
	i.Wrapped = in.rest
	var err error
	if i.Ephemeral, err = ecdh.P256().NewPublicKey(point); err != nil || in.bad {
		return i, fmt.Errorf("import: %v: %w", err, hsm.ErrInput)
	}
	return i, nil
}

// AppendMACWrapped writes the payload of a mac-wrapped request; wrapped is 40
// bytes.
func AppendMACWrapped(buf, wrapped, data []byte) []byte {
	return append(append(buf, wrapped...), data...)
}

func parseMACWrapped(b []byte) (wrapped, data []byte) {
	n := min(len(b), border.WrappedLen)
	return b[:n], b[n:]
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
