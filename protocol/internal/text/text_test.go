package text

import "testing"

func TestCheck(t *testing.T) {
	for s, good := range map[string]bool{
		"":                      true,
		"Blue Gate Coffee #4":   true,
		"Nördliches Tor, Süd":   true,
		"№4: 2 × 3,50 (−10 %)":  true,
		"Чек 12, 3 евро":        true,
		"Καφές 3 €":             true,
		"東京タワーの券 2 枚":           true,
		"大韓 입장권":                true,
		"台北ㄊㄞˊ":                 true,
		"東京 Tokyo":              false, // UTS 39 single-script: Latin is another script
		"かな한글":                  false,
		"かなㄅ":                   false,
		"Pаypal":                false, // the second letter is Cyrillic
		"Αthens":                false, // the first letter is Greek
		"Cafe\u0301":            false, // not NFC
		"tab\there":             false,
		"del\u007f":             false,
		"c1\u0085":              false,
		"soft\u00adhyphen":      false,
		"zero\u200bwidth":       false,
		"bidi\u202e":            false,
		"line\u2028":            false,
		"para\u2029":            false,
		"private\ue000":         false,
		"private\U000f0000":     false,
		"tag\U000e0041":         false,
		"unassigned\u0378":      false,
		"\u0378":                false,
		"nonchar\ufffe":         false,
		"last\U0010ffff":        false,
		"bad\xff":               false,
		"surrogate\xed\xa0\x80": false,
		"emoji 🙂 is common":     true,
	} {
		if err := Check(s); (err == nil) != good {
			t.Errorf("%q: %v, want good %v", s, err, good)
		}
	}
}

func TestScriptOf(t *testing.T) {
	for r, want := range map[rune]string{
		'a': "Latin", 'я': "Cyrillic", 'ア': "Katakana", 'ー': common, '\u0301': inherited,
		'漢': "Han", 0x10FFFF: "", 0: common, 'Ā': "Latin",
	} {
		if got, ok := scriptOf(r); got != want || ok != (want != "") {
			t.Errorf("%U is %q, %v; want %q", r, got, ok, want)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("Blue Gate")
	f.Add("Чек")
	f.Add("\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if Check(s) == nil && Check(s+"\u202e") == nil {
			t.Errorf("%q with an override passes", s)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	for b.Loop() {
		if err := Check("Nördliches Tor, Süd 4"); err != nil {
			b.Fatal(err)
		}
	}
}
