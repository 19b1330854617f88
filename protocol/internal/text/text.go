// Package text implements the rules for names and texts that users see (PROTOCOL.md §3): NFC, one
// script, no character that is invisible or reorders others.
package text

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

var (
	errUTF8    = errors.New("text is not UTF-8")
	errNFC     = errors.New("text is not in normalization form C")
	errScripts = errors.New("text mixes scripts")
)

// Check rejects text that is not NFC, mixes scripts (UTS 39 §5.1, over the Script property), or has
// a character of category Cc, Cf, Co, Cs, Zl or Zp, or one that this program's Unicode version does
// not assign.
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

// The values of the Script property that combine with every script.
const (
	common    = "Common"
	inherited = "Inherited"
)

// writingSystems are the scripts with augmented script sets (UTS 39 §5.1): Han is used alone and in
// Japanese, Korean, and Chinese with Bopomofo.
var writingSystems = map[string][]string{
	"Han":      {"Han", "Japanese", "Korean", "Hanb"},
	"Hiragana": {"Hiragana", "Japanese"},
	"Katakana": {"Katakana", "Japanese"},
	"Hangul":   {"Hangul", "Korean"},
	"Bopomofo": {"Bopomofo", "Hanb"},
}

// systemSet is the resolved script set of the characters seen so far.
type systemSet struct {
	any   bool
	names []string
}

func everySystem() systemSet { return systemSet{any: true} }

func (s *systemSet) none() bool { return !s.any && len(s.names) == 0 }

// keep intersects the set with the script set of one character.
func (s *systemSet) keep(script string) {
	if script == common || script == inherited {
		return
	}
	with, augmented := writingSystems[script]
	if !augmented {
		with = []string{script}
	}
	if s.any {
		s.any, s.names = false, slices.Clone(with)
		return
	}
	s.names = slices.DeleteFunc(s.names, func(name string) bool { return !slices.Contains(with, name) })
}

// span is a run of characters of one script.
type span struct {
	lo, hi rune
	script string
}

// spans covers all of Unicode in order. The standard library has one table per script, and a search
// in each of them for every character would be slow.
var spans = sync.OnceValue(func() []span {
	var all []span
	for script, table := range unicode.Scripts {
		for _, r := range table.R16 {
			all = appendSpans(all, span{rune(r.Lo), rune(r.Hi), script}, rune(r.Stride))
		}
		for _, r := range table.R32 {
			all = appendSpans(all, span{rune(r.Lo), rune(r.Hi), script}, rune(r.Stride))
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
	return all
})

func appendSpans(all []span, s span, stride rune) []span {
	if stride == 1 {
		return append(all, s)
	}
	for r := s.lo; r <= s.hi; r += stride {
		all = append(all, span{r, r, s.script})
	}
	return all
}

// scriptOf returns the Script property; ok is false for unassigned characters.
func scriptOf(r rune) (script string, ok bool) {
	all := spans()
	i, found := slices.BinarySearchFunc(all, r, func(s span, r rune) int { return cmp.Compare(s.lo, r) })
	if !found {
		i--
	}
	if i < 0 || r > all[i].hi {
		return "", false
	}
	return all[i].script, true
}
