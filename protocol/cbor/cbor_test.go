package cbor

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func canonical(b []byte) error {
	_, rest, err := Next(b)
	if err == nil && len(rest) != 0 {
		err = errors.New("trailing bytes")
	}
	return err
}

func TestCanonical(t *testing.T) {
	for _, c := range []struct {
		cbor string
		good bool
	}{
		{"00", true},
		{"17", true},
		{"1818", true},
		{"1817", false},
		{"18", false},
		{"190100", true},
		{"1900ff", false},
		{"1a00010000", true},
		{"1a0000ffff", false},
		{"1b0000000100000000", true},
		{"1b00000000ffffffff", false},
		{"1bffffffffffffffff", true},
		{"1c", false},
		{"1f", false},
		{"20", true},
		{"3bffffffffffffffff", true},
		{"4101", true},
		{"42ff", false},
		{"5f4101ff", false},
		{"6161", true},
		{"61ff", false},
		{"80", true},
		{"9f01ff", false},
		{"9bffffffffffffffff", false},
		{"820102", true},
		{"8201", false},
		{"a10102", true},
		{"a1", false},
		{"a201020102", false},
		{"a202010101", false},
		{"a1610101", false},
		{"a220002100", true},
		{"a221002000", false},
		{"a200002000", true},
		{"c100", false},
		{"f4", false},
		{"f5", false},
		{"f6", true},
		{"f7", false},
		{"f93c00", false},
		{"f816", false},
		{"ff", false},
		{"", false},
		{"0000", false},
		{"8181818181818181" + "00", true},
		{"818181818181818181" + "00", false},
	} {
		if err := canonical(unhex(t, c.cbor)); (err == nil) != c.good {
			t.Errorf("%s: %v, want good %v", c.cbor, err, c.good)
		}
	}
}

func TestUnmarshalErrors(t *testing.T) {
	type one struct {
		N uint8 `cbor:"1,keyasint"`
	}
	type optional struct {
		N *uint64 `cbor:"1,keyasint,omitempty"`
		B []byte  `cbor:"2,keyasint,omitempty"`
	}
	type bytes3 struct {
		B [3]byte `cbor:"1,keyasint"`
	}
	for name, c := range map[string]struct {
		cbor string
		into any
	}{
		"unknown key":  {"a201020202", &one{}},
		"missing":      {"a0", &one{}},
		"above":        {"a101190100", &one{}},
		"type":         {"a1014102", &one{}},
		"null":         {"a101f6", &optional{}},
		"empty":        {"a10240", &optional{}},
		"length":       {"a10142ffff", &bytes3{}},
		"no bytes":     {"a10102", &bytes3{}},
		"negative key": {"a22001184001", &one{}},
		"text key":     {"a2010261610b", &one{}},
		"array":        {"8101", &one{}},
		"trailing":     {"a1010200", &one{}},
		"no item":      {"", &one{}},
		"truncated":    {"a101", &one{}},
	} {
		if err := UnmarshalMap(unhex(t, c.cbor), c.into); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestUnmarshalMap(t *testing.T) {
	type one struct {
		A uint64 `cbor:"1,keyasint"`
	}
	var v one
	if err := UnmarshalMap(unhex(t, "a20107184002"), &v); err != nil || v.A != 7 {
		t.Errorf("got %+v, %v", v, err)
	}
	for _, bad := range []string{"a201070208", "a201072000", "8107", "a1010700"} {
		if err := UnmarshalMap(unhex(t, bad), &v); err == nil {
			t.Errorf("%s decodes", bad)
		}
	}
}

// member1 has the kinds of members that OA1 uses.
type member1 struct {
	Level  uint8    `cbor:"1,keyasint"`
	ID     [2]byte  `cbor:"2,keyasint"`
	Bytes  []byte   `cbor:"3,keyasint"`
	Amount *pair    `cbor:"4,keyasint,omitempty"`
	List   [][]byte `cbor:"5,keyasint"`
	Inner  struct {
		Sign int64 `cbor:"-1,keyasint"`
	} `cbor:"6,keyasint"`
	Raw     RawMessage           `cbor:"7,keyasint"`
	Headers map[int64]RawMessage `cbor:"8,keyasint"`
	embedded
}

type embedded struct {
	Text *string `cbor:"9,keyasint,omitempty"`
}

type pair struct {
	_     struct{} `cbor:",toarray"`
	Minor uint64
	Unit  string
}

func samples() []member1 {
	text := "x"
	return []member1{
		{Level: 4, Raw: RawMessage{0x01}, Headers: map[int64]RawMessage{}},
		{
			Level: 255, ID: [2]byte{1, 2}, Bytes: []byte{}, Amount: &pair{Minor: math.MaxUint64, Unit: "EUR"}, List: [][]byte{{1}, nil},
			Inner: struct {
				Sign int64 `cbor:"-1,keyasint"`
			}{-7}, Raw: RawMessage{0x82, 0x01, 0xf6},
			Headers: map[int64]RawMessage{4: {0x41, 0x01}, -1: {0x00}}, embedded: embedded{Text: &text},
		},
	}
}

func TestUnmarshal(t *testing.T) {
	for _, want := range samples() {
		var got member1
		if err := Unmarshal(Marshal(want), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got\n%+v, %v, want\n%+v", got, err, want)
		}
	}
}

// FuzzUnmarshal: the decoder accepts exactly the encodings that a lenient decoder reads and Marshal
// reproduces.
func FuzzUnmarshal(f *testing.F) {
	for _, s := range samples() {
		b := Marshal(s)
		f.Add(b)
		for i := range b {
			for _, c := range []byte{0xf6, 0x00, 0x40, 0x80, 0xa0, b[i] ^ 1, b[i] + 1} {
				changed := bytes.Clone(b)
				changed[i] = c
				f.Add(changed)
			}
			f.Add(append(bytes.Clone(b[:i]), b[i+1:]...))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var strict, lenient member1
		err := Unmarshal(b, &strict)
		want := canonical(b) == nil && cbor.Unmarshal(b, &lenient) == nil && bytes.Equal(Marshal(lenient), b)
		if (err == nil) != want {
			t.Fatalf("%x: %v, want it taken %v", b, err, want)
		}
		if err == nil && !bytes.Equal(Marshal(strict), b) {
			t.Fatalf("%x comes back as %x", b, Marshal(strict))
		}
	})
}

// FuzzCanonical: Next accepts exactly the output of the encoder.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"a10102", "820102", "1818", "f6", "a220002100", "9f01ff", "6161"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if canonical(b) != nil {
			return
		}
		var v any
		if err := cbor.Unmarshal(b, &v); err != nil {
			t.Fatalf("%x is canonical, and yet: %v", b, err)
		}
		if back := Marshal(v); !bytes.Equal(back, b) {
			t.Fatalf("%x comes back as %x", b, back)
		}
	})
}
