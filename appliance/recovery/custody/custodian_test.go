package custody

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
)

// encode returns the recipient of a u-coordinate, 32 bytes in little-endian order (BIP 173).
func encode(u []byte) string {
	values := []byte{}
	bits, held := uint(0), 0
	for _, b := range u {
		for bits, held = bits<<8|uint(b), held+8; held >= 5; held -= 5 {
			values = append(values, byte(bits>>(held-5)&31))
		}
	}
	if held > 0 {
		values = append(values, byte(bits<<(5-held)&31))
	}
	check := uint32(1)
	for _, v := range slices.Concat([]byte{3, 3, 3, 0, 'a' & 31, 'g' & 31, 'e' & 31}, values, make([]byte, 6)) {
		top := check >> 25
		check = check&0x1ffffff<<5 ^ uint32(v)
		for i, g := range []uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3} {
			if top>>i&1 == 1 {
				check ^= g
			}
		}
	}
	check ^= 1
	for i := range 6 {
		values = append(values, byte(check>>(5*(5-i))&31))
	}
	var text strings.Builder
	text.WriteString("age1")
	for _, v := range values {
		text.WriteByte(bech32Digits[v])
	}
	return text.String()
}

func recipient(t *testing.T, text string) Custodian {
	t.Helper()
	c, err := Recipient(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

func passphrase(t *testing.T, text string) Custodian {
	t.Helper()
	c, err := Passphrase([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

// TestDistinct: one person is one custodian, however the key is written, and the error names both positions.
func TestDistinct(t *testing.T) {
	some := func() string {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		return id.Recipient().String()
	}
	anna, ben := some(), some()
	low := slices.Concat([]byte{5}, make([]byte, 31))                                          // u = 5
	high := slices.Concat([]byte{5}, make([]byte, 30), []byte{0x80})                           // the highest bit is ignored
	above := slices.Concat([]byte{0xF2}, slices.Repeat([]byte{0xFF}, 30), []byte{0x7F})        // u = 5 + 2^255 - 19
	aboveAndHigh := slices.Concat([]byte{0xF2}, slices.Repeat([]byte{0xFF}, 30), []byte{0xFF}) // both
	other := slices.Concat([]byte{6}, make([]byte, 31))                                        // u = 6
	const words, otherWords = "four words that nobody says", "four words that anybody says"
	for name, tc := range map[string]struct {
		all  []Custodian
		want string // "" is none
	}{
		"different people": {[]Custodian{recipient(t, anna), recipient(t, ben), passphrase(t, words), passphrase(t, otherWords)}, ""},
		"one recipient":    {[]Custodian{recipient(t, anna), recipient(t, ben), recipient(t, anna)}, "custodians 1 and 3 "},
		"white space":      {[]Custodian{recipient(t, anna), recipient(t, "# anna\n"+anna+"\n")}, "custodians 1 and 2 "},
		"one passphrase":   {[]Custodian{recipient(t, ben), passphrase(t, words), passphrase(t, words)}, "custodians 2 and 3 "},
		"highest bit":      {[]Custodian{recipient(t, encode(low)), recipient(t, encode(high))}, "custodians 1 and 2 "},
		"above the prime":  {[]Custodian{recipient(t, encode(above)), recipient(t, encode(low))}, "custodians 1 and 2 "},
		"both":             {[]Custodian{recipient(t, encode(above)), recipient(t, encode(aboveAndHigh))}, "custodians 1 and 2 "},
		"another point":    {[]Custodian{recipient(t, encode(low)), recipient(t, encode(other))}, ""},
	} {
		err := Distinct(tc.all)
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, errSame) || !strings.HasPrefix(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestWeakPassphrase: what is short, or repeats a few characters, is no passphrase.
func TestWeakPassphrase(t *testing.T) {
	for text, want := range map[string]string{
		"x": "of 1 bytes", "fifteen bytes..": "of 15 bytes", "aaaaaaaaaaaaaaaaaaaaaaaa": "of 1 different", "abcdeabcdeabcdeabcde": "of 5 different",
	} {
		if _, err := Passphrase([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	passphrase(t, "abcdefabcdefabcd")
}
