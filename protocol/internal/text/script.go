package text

import (
	"cmp"
	"slices"
	"sync"
	"unicode"
)

// The values of the Script property that go with every script.
const (
	common    = "Common"
	inherited = "Inherited"
)

// writingSystems are the scripts with augmented script sets, UTS 39 §5.1: Han
// stands alone and in Japanese, Korean, and Chinese with Bopomofo.
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

// keep intersects the set with that of one character's script.
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

// spans has all of Unicode in order; the library's tables are one per script,
// which would be a search in each of them for every character.
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

// scriptOf gives the Script property; ok is false for unassigned characters.
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
