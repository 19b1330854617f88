package cbor

import "github.com/fxamacker/cbor/v2"

var encMode = func() cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// Marshal encodes v deterministically. It panics on a type that cannot be encoded.
func Marshal(v any) []byte {
	b, err := encMode.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// AppendUint appends an unsigned integer in shortest form.
func AppendUint(b []byte, v uint64) []byte { return appendHead(b, majorUint, v) }

// AppendBytes appends a byte string.
func AppendBytes(b, v []byte) []byte {
	return append(appendHead(b, majorBytes, uint64(len(v))), v...)
}

// AppendText appends a text string.
func AppendText(b []byte, v string) []byte {
	return append(appendHead(b, majorText, uint64(len(v))), v...)
}

// AppendArray appends the head of an array of n items.
func AppendArray(b []byte, n int) []byte { return appendHead(b, majorArray, uint64(n)) }

func appendHead(b []byte, major byte, arg uint64) []byte {
	if arg < 24 {
		return append(b, major<<5|byte(arg))
	}
	log := 0
	for log < 3 && arg>>(8<<log) != 0 {
		log++
	}
	b = append(b, major<<5|byte(24+log))
	for shift := 8<<log - 8; shift >= 0; shift -= 8 {
		b = append(b, byte(arg>>shift))
	}
	return b
}
