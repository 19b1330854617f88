package enrol

import (
	"strings"
	"unicode"
)

// ParseTypedCode parses an activation code as people type and copy it: in upper or lower case, with any spaces and
// dashes, or none (PROTOCOL.md §5). What goes on the wire is [ActivationCode.String]. Errors are those of
// [ParseActivationCode].
func ParseTypedCode(s string) (ActivationCode, error) {
	plain := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r), unicode.Is(unicode.Pd, r), unicode.Is(unicode.Cf, r), r == '−': // U+2212, the minus sign
			return -1
		case 'a' <= r && r <= 'z': // no other letter becomes one of ASCII
			return r - 'a' + 'A'
		}
		return r
	}, s)
	const root = len(activationPrefix) + 26
	if len(plain) != root+20 {
		return ParseActivationCode(plain) // which says what a code looks like
	}
	return ParseActivationCode(plain[:len(activationPrefix)] + "-" + plain[len(activationPrefix):root] + "-" + plain[root:])
}
