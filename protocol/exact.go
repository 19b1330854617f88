package protocol

import (
	"bytes"

	"github.com/fxamacker/cbor/v2"
)

// firstIgnoredKey is the first map key a reader ignores when it does not know
// it, PROTOCOL.md §2.
const firstIgnoredKey = 64

// unmarshalExact decodes an integer-keyed map and requires that v marshals back
// to the same bytes, ignored keys aside. The library takes null for anything and
// a byte string of any length for an array; this does not.
func unmarshalExact(b []byte, v any, known ...uint64) error {
	if err := unmarshalMap(b, v, known...); err != nil {
		return err
	}
	kept, err := withoutIgnored(b)
	if err != nil {
		return err
	}
	if !bytes.Equal(marshal(v), kept) {
		return formatError("CBOR map has a member of another type or length")
	}
	return nil
}

// unmarshalSame is unmarshalExact for what is not a map.
func unmarshalSame(b []byte, v any) error {
	if err := unmarshal(b, v); err != nil {
		return err
	}
	if !bytes.Equal(marshal(v), b) {
		return formatError("CBOR item has a member of another type or length")
	}
	return nil
}

// withoutIgnored gives the map without its keys of 64 and above.
func withoutIgnored(b []byte) ([]byte, error) {
	var m map[int64]cbor.RawMessage
	if err := unmarshal(b, &m); err != nil {
		return nil, err
	}
	before := len(m)
	for k := range m {
		if k >= firstIgnoredKey {
			delete(m, k)
		}
	}
	if len(m) == before {
		return b, nil
	}
	return marshal(m), nil
}
