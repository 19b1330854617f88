package wire

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// AppendSign writes the payload of a sign request.
func AppendSign(buf []byte, alg hsm.Algorithm, input []byte) []byte {
	return append(append(buf, byte(alg)), input...)
}

func parseSign(b []byte) (hsm.Algorithm, []byte) {
	if len(b) == 0 {
		return 0, nil
	}
	return hsm.Algorithm(b[0]), b[1:]
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

// AppendRewrap writes the payload of a rewrap request, whose key is r.From.
func AppendRewrap(buf []byte, r hsm.Rewrap) []byte {
	return append(append(buf, r.To[:]...), r.Wrapped...)
}

func parseRewrap(q Request) (hsm.Rewrap, error) {
	in, r := reader{rest: q.Payload}, hsm.Rewrap{From: q.Key}
	copy(r.To[:], in.bytes(len(r.To)))
	r.Wrapped = in.bytes(border.WrappedLen)
	return r, in.input(Rewrap)
}

// AppendCrypt writes the payload of an encrypt or decrypt request; text is what
// is to be encrypted or decrypted.
func AppendCrypt(buf, text, aad []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(aad)))
	return append(append(buf, aad...), text...)
}

func parseCrypt(b []byte) (text, aad []byte, err error) {
	in := reader{rest: b}
	n := in.u32()
	if in.bad || uint64(n) > uint64(len(in.rest)) {
		return nil, nil, fmt.Errorf("request of %d bytes is cut off: %w", len(b), hsm.ErrInput)
	}
	aad = in.bytes(int(n))
	return in.rest, aad, nil
}

// AppendSpec writes the payload of a generate request.
func AppendSpec(buf []byte, spec hsm.KeySpec) []byte {
	buf = append(appendName(buf, spec), byte(len(spec.Recipients)))
	for _, r := range spec.Recipients {
		buf = append(buf, r.Bytes()...)
	}
	return buf
}

func appendName(buf []byte, spec hsm.KeySpec) []byte {
	return appendText(append(buf, byte(spec.Usage)), spec.Label)
}

func parseName(in *reader) hsm.KeySpec {
	return hsm.KeySpec{Usage: hsm.Usage(in.u8()), Label: string(in.text())}
}

func parseSpec(b []byte) (hsm.KeySpec, error) {
	in := reader{rest: b}
	spec := parseName(&in)
	for range in.u8() {
		point, err := ecdh.P256().NewPublicKey(in.bytes(border.PointLen))
		if err != nil {
			return spec, fmt.Errorf("generate: %v: %w", err, hsm.ErrInput)
		}
		spec.Recipients = append(spec.Recipients, point)
	}
	return spec, in.input(Generate)
}

// AppendRestore writes the payload of a restore request, whose key is r.With.
func AppendRestore(buf []byte, r hsm.Restore) []byte {
	buf = append(appendName(buf, r.Spec), r.ID[:]...)
	return append(appendText(buf, r.Public), r.Sealed...)
}

func parseRestore(q Request) (hsm.Restore, error) {
	in := reader{rest: q.Payload}
	r := hsm.Restore{Spec: parseName(&in), With: q.Key}
	copy(r.ID[:], in.bytes(len(r.ID)))
	if public := in.text(); len(public) > 0 {
		r.Public = bytes.Clone(public)
	}
	r.Sealed, in.rest = in.rest, nil
	return r, in.input(Restore)
}

// AppendAdopt writes the payload of an adopt request, with the private key in it.
func AppendAdopt(buf []byte, spec hsm.KeySpec, private *ecdh.PrivateKey) []byte {
	return append(appendName(buf, spec), private.Bytes()...)
}

func parseAdopt(b []byte) (hsm.KeySpec, *ecdh.PrivateKey, error) {
	in := reader{rest: b}
	spec := parseName(&in)
	private, err := ecdh.P256().NewPrivateKey(in.rest)
	if err != nil {
		return spec, nil, fmt.Errorf("adopt: %v: %w", err, hsm.ErrInput)
	}
	in.rest = nil
	return spec, private, in.input(Adopt)
}

// AppendCertificate writes the payload of a store-certificate request, whose
// key is c.Key.
func AppendCertificate(buf []byte, c hsm.Certificate) []byte {
	return append(appendText(buf, c.Label), c.DER...)
}

func parseCertificate(q Request) (hsm.Certificate, error) {
	in := reader{rest: q.Payload}
	c := hsm.Certificate{Key: q.Key, Label: string(in.text())}
	c.DER, in.rest = in.rest, nil
	return c, in.input(StoreCertificate)
}

// input is done for a request, whose sender made it from a caller's arguments.
func (r *reader) input(op Op) error {
	if err := r.done(); err != nil {
		return fmt.Errorf("%s: %v: %w", op, err, hsm.ErrInput)
	}
	return nil
}

func appendKey(buf []byte, k hsm.Key) []byte {
	buf = append(append(buf, k.ID[:]...), byte(k.Usage))
	buf = append(appendText(appendText(buf, k.Label), k.Public), byte(len(k.Sealed)))
	for _, s := range k.Sealed {
		buf = appendText(buf, s)
	}
	return buf
}

// ParseKeys reads the payload of a response that is keys, one after the other.
// A public key whose hash is not the id is [ErrFrame], as is anything left over.
func ParseKeys(b []byte) ([]hsm.Key, error) {
	in, keys := reader{rest: b}, []hsm.Key{}
	for len(in.rest) > 0 && !in.bad {
		keys = append(keys, parseKey(&in))
	}
	if err := in.done(); err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	return keys, nil
}

func parseKey(in *reader) (k hsm.Key) {
	copy(k.ID[:], in.bytes(len(k.ID)))
	k.Usage, k.Label = hsm.Usage(in.u8()), string(in.text())
	if public := in.text(); len(public) > 0 {
		sum := sha256.Sum256(public)
		in.bad = in.bad || !bytes.Equal(sum[:len(k.ID)], k.ID[:])
		k.Public = bytes.Clone(public)
	}
	for range in.u8() {
		k.Sealed = append(k.Sealed, bytes.Clone(in.text()))
	}
	k.Copied = len(k.Sealed) > 0
	return k
}

func appendCertificate(buf []byte, c hsm.Certificate) []byte {
	return appendText(appendText(append(buf, c.Key[:]...), c.Label), c.DER)
}

// ParseCertificates reads the payload of a certificates response; anything
// left over is [ErrFrame].
func ParseCertificates(b []byte) ([]hsm.Certificate, error) {
	in, certs := reader{rest: b}, []hsm.Certificate{}
	for len(in.rest) > 0 && !in.bad {
		var c hsm.Certificate
		copy(c.Key[:], in.bytes(len(c.Key)))
		c.Label, c.DER = string(in.text()), bytes.Clone(in.text())
		certs = append(certs, c)
	}
	if err := in.done(); err != nil {
		return nil, fmt.Errorf("reading certificates: %w", err)
	}
	return certs, nil
}
