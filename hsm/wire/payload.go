package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"countersign/hsm"
)

func appendKey(buf []byte, k hsm.Key) []byte {
	buf = append(append(buf, k.ID[:]...), byte(k.Usage))
	buf = append(appendText(appendText(buf, k.Label), k.Public), byte(len(k.Sealed)))
	for _, s := range k.Sealed {
		buf = appendText(buf, s)
	}
	return buf
}

// ParseKeys reads the payload of a response that is a sequence of keys. A public key whose
// hash is not the id, or trailing bytes, are [ErrFrame].
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

// ParseCertificates reads the payload of a certificates response; trailing bytes are
// [ErrFrame].
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

// maxText bounds an id or a label in an object: a foreign object may have one of any
// length.
const maxText = 1024

func appendObject(buf []byte, o hsm.Object) []byte {
	buf = appendText(appendText(buf, o.Class), o.KeyType)
	buf = appendText(buf, o.ID[:min(len(o.ID), maxText)])
	buf = appendText(buf, o.Label[:min(len(o.Label), maxText)])
	buf = append(buf, o.Key[:]...)
	buf = binary.BigEndian.AppendUint32(buf, uint32(o.True))
	buf = binary.BigEndian.AppendUint32(buf, uint32(o.Told))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(o.Mechanisms)))
	for _, m := range o.Mechanisms {
		buf = appendText(buf, m)
	}
	return buf
}

// ParseObjects reads the payload of an objects response; trailing bytes are [ErrFrame].
func ParseObjects(b []byte) ([]hsm.Object, error) {
	in, objects := reader{rest: b}, []hsm.Object{}
	for len(in.rest) > 0 && !in.bad {
		objects = append(objects, parseObject(&in))
	}
	if err := in.done(); err != nil {
		return nil, fmt.Errorf("reading objects: %w", err)
	}
	return objects, nil
}

func parseObject(in *reader) (o hsm.Object) {
	o.Class, o.KeyType = string(in.text()), string(in.text())
	o.ID, o.Label = bytes.Clone(in.text()), string(in.text())
	copy(o.Key[:], in.bytes(len(o.Key)))
	o.True, o.Told = hsm.Attributes(in.u32()), hsm.Attributes(in.u32())
	for n := in.u16(); n > 0 && !in.bad; n-- {
		o.Mechanisms = append(o.Mechanisms, string(in.text()))
	}
	return o
}
