package password

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// HeaderLength is the header field of the answer to GET /v1/trust that has the least length of a new password.
const HeaderLength = "OA1-Password-Length"

// The least length of a new password, in characters (PROTOCOL.md §4.1): by default, and the bounds of what an appliance
// may ask for.
const (
	DefaultLength = 6
	LeastLength   = 4
	MostLength    = 64
)

// LengthOf reads a header field. It returns [DefaultLength] if the field is absent or malformed.
func LengthOf(field string) int {
	n, err := strconv.ParseUint(field, 10, 8)
	if err != nil || n < LeastLength || n > MostLength || strconv.FormatUint(n, 10) != field {
		return DefaultLength
	}
	return int(n)
}

// ShortError means that a new password has fewer characters than the appliance asks for.
type ShortError struct{ Length, Least int }

func (e *ShortError) Error() string {
	return fmt.Sprintf("the password has %d characters: this appliance wants at least %d", e.Length, e.Least)
}

// CheckLength returns a [*ShortError] if a new password has too few characters. Characters are the code points of its
// NFKC form.
func CheckLength(password []byte, least int) error {
	copied := bytes.Clone(password)
	normal := norm.NFKC.Bytes(copied) // perhaps the same bytes
	defer clear(copied)
	defer clear(normal)
	if n := utf8.RuneCount(normal); n < least {
		return &ShortError{Length: n, Least: least}
	}
	return nil
}
