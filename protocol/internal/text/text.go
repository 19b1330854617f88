// Package text has the rules for names and texts that a person is shown
// (PROTOCOL.md §3): NFC, one script, no character that is invisible or changes
// the order of others.
package text

import (
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

var (
	errUTF8    = errors.New("text is not UTF-8")
	errNFC     = errors.New("text is not in normalization form C")
	errScripts = errors.New("text mixes scripts")
)

// Check refuses what is not NFC, mixes scripts (UTS 39 §5.1, over the Script
// property), or has a character of category Cc, Cf, Co, Cs, Zl or Zp, or one
// that is not assigned in the Unicode version of this program.
func Check(s string) error {
	if isPrintableASCII(s) {
		return nil
	}
	if !utf8.ValidString(s) {
		return errUTF8
	}
	if !norm.NFC.IsNormalString(s) {
		return errNFC
	}
	return checkRunes(s)
}

func isPrintableASCII(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func checkRunes(s string) error {
	systems := everySystem()
	for _, r := range s {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp) {
			return fmt.Errorf("text has the character %U", r)
		}
		script, ok := scriptOf(r)
		if !ok {
			return fmt.Errorf("text has the unassigned character %U", r)
		}
		if systems.keep(script); systems.none() {
			return errScripts
		}
	}
	return nil
}
