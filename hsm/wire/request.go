package wire

import (
	"crypto/ecdh"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"countersign/hsm"
)

// Op is the operation of a request, one for each method of [hsm.Token].
type Op byte

const (
	opSign Op = iota + 1
	opDecap
	opMAC
	opImport
	opMACWrapped
	opGenerate
	opKeys
	opRestore
	opAdopt
	opDestroy
	opStoreCertificate
	opCertificates
	opRewrap
	opObjects
	opForeign
	opKnow
)

var ops = [...]struct {
	name    string
	changes bool // the contents of the token
	lists   bool // all objects of a kind
}{
	opSign: {name: "sign"}, opDecap: {name: "decap"}, opMAC: {name: "mac"}, opImport: {name: "import"},
	opMACWrapped: {name: "mac-wrapped"}, opRewrap: {name: "rewrap"},
	opGenerate: {name: "generate", changes: true}, opRestore: {name: "restore", changes: true},
	opAdopt: {name: "adopt", changes: true}, opDestroy: {name: "destroy", changes: true},
	opStoreCertificate: {name: "store-certificate", changes: true},
	opKnow:             {name: "know"}, opForeign: {name: "foreign", lists: true},
	opKeys: {name: "keys", lists: true}, opCertificates: {name: "certificates", lists: true}, opObjects: {name: "objects", lists: true},
}

// Ops returns the number of operations: they are 1 to Ops.
func Ops() Op { return Op(len(ops) - 1) }

// String returns the op label of metrics.
func (o Op) String() string {
	if int(o) >= len(ops) {
		return fmt.Sprintf("op(%d)", byte(o))
	}
	return ops[o].name
}

// Repeatable reports whether a request may be sent again, to another worker, without
// knowing whether it was done before. One that changes the token may not.
func (o Op) Repeatable() bool { return !ops[o].changes }

// Slow reports whether an operation makes or lists objects, which takes longer
// than using one.
func (o Op) Slow() bool { return ops[o].changes || ops[o].lists }

// Request is one call on its way to the child.
type Request struct {
	ID       uint32
	Op       Op
	Deadline int64 // of [Now]
	Key      hsm.KeyID
	Payload  []byte
	Detail   string // not sent: the algorithm or second key in the payload
}

// Sign is the request for [hsm.Signer].
func Sign(key hsm.KeyID, alg hsm.Algorithm, input []byte) Request {
	payload := append(append(make([]byte, 0, 1+len(input)), byte(alg)), input...)
	return Request{Op: opSign, Key: key, Payload: payload, Detail: string(payload[:1])}
}

// Decap is a request, as are the functions below, for the method of [hsm.Token] of that name.
func Decap(key hsm.KeyID, kem hsm.KEM, enc *ecdh.PublicKey) Request {
	payload := append([]byte{byte(kem)}, enc.Bytes()...)
	return Request{Op: opDecap, Key: key, Payload: payload, Detail: string(payload[:1])}
}

// MAC is a request that shares data.
func MAC(key hsm.KeyID, data []byte) Request { return Request{Op: opMAC, Key: key, Payload: data} }

// Import is the request with the key i.Enrol.
func Import(i hsm.Import) Request {
	payload := append(append([]byte(nil), i.Wrap[:]...), i.Ephemeral.Bytes()...)
	payload = append(append(payload, i.Context[:]...), i.Wrapped...)
	return Request{Op: opImport, Key: i.Enrol, Payload: payload, Detail: string(i.Wrap[:])}
}

// MACWrapped takes a wrapped secret of at most 255 bytes.
func MACWrapped(wrap hsm.KeyID, wrapped, data []byte) Request {
	return Request{Op: opMACWrapped, Key: wrap, Payload: append(append([]byte{byte(len(wrapped))}, wrapped...), data...)}
}

// Rewrap is the request with the key r.From.
func Rewrap(r hsm.Rewrap) Request {
	return Request{Op: opRewrap, Key: r.From, Payload: append(append([]byte(nil), r.To[:]...), r.Wrapped...), Detail: string(r.To[:])}
}

// Generate is answered with one key.
func Generate(spec hsm.KeySpec) Request {
	payload := append(appendName(nil, spec), byte(len(spec.Recipients)))
	for _, r := range spec.Recipients {
		payload = append(payload, r.Bytes()...)
	}
	return Request{Op: opGenerate, Payload: payload}
}

// Restore is the request with the key r.With. It is answered with one key.
func Restore(r hsm.Restore) Request {
	payload := appendText(append(appendName(nil, r.Spec), r.ID[:]...), r.Public)
	return Request{Op: opRestore, Key: r.With, Payload: append(payload, r.Sealed...)}
}

// Adopt has the private key in its payload, which the caller erases. It is answered
// with one key.
func Adopt(spec hsm.KeySpec, private *ecdh.PrivateKey) Request {
	payload := make([]byte, 0, 128) // growing would leave a copy of the key behind
	return Request{Op: opAdopt, Payload: append(appendName(payload, spec), private.Bytes()...)}
}

// Destroy is answered with nothing.
func Destroy(key hsm.KeyID) Request { return Request{Op: opDestroy, Key: key} }

// StoreCertificate is answered with nothing.
func StoreCertificate(c hsm.Certificate) Request {
	return Request{Op: opStoreCertificate, Key: c.Key, Payload: append(appendText(nil, c.Label), c.DER...)}
}

// Keys is answered with what [ParseKeys] reads.
func Keys() Request { return Request{Op: opKeys} }

// Foreign is answered with what [ParseKeys] reads.
func Foreign() Request { return Request{Op: opForeign} }

// Know is answered with nothing. The caller sends at most [MaxKnown] public keys at once.
func Know(publics [][]byte) Request {
	var payload []byte
	for _, p := range publics {
		payload = appendText(payload, p)
	}
	return Request{Op: opKnow, Payload: payload}
}

// MaxKnown is the number of public keys that one request takes: RSA-4096 in DER has 550 bytes.
const MaxKnown = 64

// Objects is answered with what [ParseObjects] reads.
func Objects() Request { return Request{Op: opObjects} }

// Certificates is answered with what [ParseCertificates] reads.
func Certificates() Request { return Request{Op: opCertificates} }

func appendName(buf []byte, spec hsm.KeySpec) []byte {
	return appendText(append(buf, byte(spec.Usage)), spec.Label)
}

// Append writes the request as a frame over buf and returns it.
func (q Request) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf[:0], q.ID)
	buf = binary.BigEndian.AppendUint64(append(buf, byte(q.Op)), uint64(q.Deadline))
	buf = append(buf, q.Key[:]...)
	return append(buf, q.Payload...)
}

// ReadRequest reads one request through buf, which [Buffer] made. The payload lies in
// buf; the caller erases it.
func ReadRequest(r io.Reader, buf []byte) (Request, error) {
	b, err := readFrame(r, buf)
	if err != nil {
		return Request{}, err
	}
	return parseRequest(b)
}

// parseRequest shares b with the request.
func parseRequest(b []byte) (Request, error) {
	in := reader{rest: b}
	q := Request{ID: in.u32(), Op: Op(in.u8()), Deadline: int64(binary.BigEndian.Uint64(in.bytes(8)))}
	copy(q.Key[:], in.bytes(len(q.Key)))
	q.Payload = in.rest
	if in.bad || q.Op < opSign || q.Op > Ops() {
		return q, fmt.Errorf("request of %d bytes, op %d: %w", len(b), q.Op, ErrFrame)
	}
	return q, nil
}

// Response is one call on its way back.
type Response struct {
	ID      uint32
	Took    time.Duration // inside the token
	Payload []byte        // nil when Err is set
	More    bool          // the payload continues in the next response with this ID
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

// Write sends the response in as many frames as it takes. It makes them in
// buf, which it returns erased.
func (p Response) Write(w io.Writer, buf []byte) ([]byte, error) {
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
