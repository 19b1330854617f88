package uri

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	digits  = "0123456789"
	// unreserved of RFC 3986 §2.3.
	unreserved = letters + digits + "-._~"
)

// plain tells that a byte stands for itself in a value.
func (c component) plain(b byte) bool {
	return strings.IndexByte(unreserved, b) >= 0 || strings.IndexByte(c.reserved, b) >= 0
}

// encode writes a value. The whole of an id is encoded, as RFC 7512 §2.3 wants:
// it is bytes, not text.
func (c component) encode(a Attribute) string {
	var b strings.Builder
	for i := range len(a.Value) {
		if a.Name != "id" && c.plain(a.Value[i]) {
			b.WriteByte(a.Value[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", a.Value[i])
		}
	}
	return b.String()
}

// decode reads a value; the error says where, never what.
func (c component) decode(raw string) (string, error) {
	value := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		switch {
		case raw[i] == '%':
			if i+3 > len(raw) {
				return "", fmt.Errorf("percent sign at byte %d without two digits: %w", i+1, ErrURI)
			}
			b, err := hex.DecodeString(raw[i+1 : i+3])
			if err != nil {
				return "", fmt.Errorf("percent sign at byte %d without two hexadecimal digits: %w", i+1, ErrURI)
			}
			value = append(value, b...)
			i += 2
		case c.plain(raw[i]):
			value = append(value, raw[i])
		default:
			return "", fmt.Errorf("byte %d (%q) is to be written %%%02X: %w", i+1, raw[i:i+1], raw[i], ErrURI)
		}
	}
	return string(value), nil
}

var (
	libraryVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)
	slotID         = regexp.MustCompile(`^[0-9]+$`)
	types          = []string{"public", "private", "cert", "secret-key", "data"}
)

// checkValue holds what RFC 7512 §2.3 asks of a value beyond its characters.
func checkValue(name, value string) error {
	switch {
	case name == "id":
		return nil
	case !utf8.ValidString(value):
		return fmt.Errorf("not UTF-8: %w", ErrURI)
	case name == "type" && !slices.Contains(types, value):
		return fmt.Errorf("want one of %s: %w", strings.Join(types, ", "), ErrURI)
	case name == LibraryVersion && !libraryVersion.MatchString(value):
		return fmt.Errorf("want MAJOR or MAJOR.MINOR in digits: %w", ErrURI)
	case name == SlotID && !slotID.MatchString(value):
		return fmt.Errorf("want digits: %w", ErrURI)
	}
	return nil
}
