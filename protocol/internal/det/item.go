package det

import (
	"errors"
	"fmt"
)

var (
	errTrailing    = errors.New("trailing bytes")
	errNegativeKey = errors.New("negative map key")
	errAbsent      = errors.New("missing")
)

// Next splits one canonical item off the front of b.
func Next(b []byte) (item, rest []byte, err error) {
	rest, err = skipItem(b, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("CBOR: %w", err)
	}
	return b[:len(b)-len(rest)], rest, nil
}

// Uint reads a canonical item as an unsigned integer.
func Uint(item []byte) (uint64, error) {
	v, _, err := expect(item, majorUint)
	return v, err
}

// Bytes reads a canonical item as a byte string. The result shares memory with item.
func Bytes(item []byte) ([]byte, error) {
	_, content, err := expect(item, majorBytes)
	return content, err
}

// Text reads a canonical item as a text string.
func Text(item []byte) (string, error) {
	_, content, err := expect(item, majorText)
	return string(content), err
}

// Array splits a canonical item that is an array.
func Array(item []byte) ([][]byte, error) {
	n, content, err := expect(item, majorArray)
	if err != nil {
		return nil, err
	}
	items := make([][]byte, n)
	for i := range items {
		if items[i], content, err = Next(content); err != nil {
			return nil, err
		}
	}
	return items, nil
}

// expect reads the head of an item whose form is already checked.
func expect(item []byte, want byte) (arg uint64, content []byte, err error) {
	if item == nil {
		return 0, nil, errAbsent
	}
	major, arg, content, err := head(item)
	if err == nil && major != want {
		err = fmt.Errorf("type %d, want %d", major, want)
	}
	return arg, content, err
}
