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

// Builder writes a map of at most 23 keys, which the caller gives in rising
// order. It is for messages of every authorization, which [Marshal] would slow down.
type Builder struct {
	b []byte
	n byte
}

// NewMap starts a map; size is the expected length in bytes.
func NewMap(size int) *Builder { return &Builder{b: make([]byte, 1, 1+size)} }

// Uint writes an entry whose value is an unsigned integer.
func (m *Builder) Uint(key, v uint64) {
	m.key(key)
	m.b = AppendUint(m.b, v)
}

// OptionalUint writes an entry unless v is nil.
func (m *Builder) OptionalUint(key uint64, v *uint64) {
	if v != nil {
		m.Uint(key, *v)
	}
}

// Bytes writes an entry whose value is a byte string.
func (m *Builder) Bytes(key uint64, v []byte) {
	m.key(key)
	m.b = AppendBytes(m.b, v)
}

// Text writes an entry whose value is a text string.
func (m *Builder) Text(key uint64, v string) {
	m.key(key)
	m.b = AppendText(m.b, v)
}

// Item writes an entry whose value is encoded already.
func (m *Builder) Item(key uint64, item []byte) {
	m.key(key)
	m.b = append(m.b, item...)
}

func (m *Builder) key(key uint64) {
	m.b = AppendUint(m.b, key)
	m.n++
}

// Encode gives the map.
func (m *Builder) Encode() []byte {
	m.b[0] = majorMap<<5 | m.n
	return m.b
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
