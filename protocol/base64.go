package protocol

import (
	"bytes"
	"encoding/base64"
)

// Base64 is a byte string that is base64url without padding in JSON, RFC 4648
// §5, in its one canonical form.
type Base64 []byte

var base64url = base64.RawURLEncoding.Strict()

func (b Base64) String() string { return base64url.EncodeToString(b) }

// MarshalText writes base64url without padding.
func (b Base64) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText refuses padding, white space and set bits after the end:
// CodeFormat.
func (b *Base64) UnmarshalText(text []byte) error {
	// The library skips line breaks, which are not base64url.
	if bytes.ContainsAny(text, "\r\n") {
		return CodeFormat.Errorf("base64url with a line break")
	}
	decoded, err := base64url.AppendDecode([]byte{}, text)
	if err != nil {
		return CodeFormat.Errorf("base64url without padding: %v", err)
	}
	*b = decoded
	return nil
}
