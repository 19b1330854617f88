package enrol_test

import (
	"errors"
	"strings"
	"testing"

	"countersign/protocol"
	"countersign/protocol/enrol"
)

func TestParseTypedCode(t *testing.T) {
	want := enrol.NewActivationCode(protocol.RootHash{1, 2, 3}, [13]byte{4, 5, 6})
	text := want.String()
	for name, typed := range map[string]string{
		"as printed":       text,
		"lower case":       strings.ToLower(text),
		"blanks around it": " \t" + text + "\r\n",
		"no dashes":        strings.ReplaceAll(text, "-", ""),
		"blanks":           strings.ReplaceAll(text, "-", " "),
		"no-break spaces":  strings.ReplaceAll(text, "-", "\u00a0"),
		"en dashes":        strings.ReplaceAll(text, "-", "–"),
		"em dashes":        strings.ReplaceAll(text, "-", "—"),
		"hyphens":          strings.ReplaceAll(text, "-", "\u2010"),
		"minus signs":      strings.ReplaceAll(text, "-", "−"),
		"groups of four":   text[:8] + " " + text[8:12] + " " + text[12:],
		"broken line":      text[:20] + "-\n" + text[20:],
		"zero-width":       "\ufeff" + text[:9] + "\u200b" + text[9:],
	} {
		if got, err := enrol.ParseTypedCode(typed); err != nil || got != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, typed := range map[string]string{
		"empty":           "",
		"one too few":     text[:len(text)-1],
		"one too many":    text + "A",
		"other prefix":    "OA2" + text[3:],
		"digit 1":         text[:len(text)-1] + "1",
		"Cyrillic letter": "ОA1" + text[3:],
		"dotless i":       text[:len(text)-1] + "ı",
	} {
		_, err := enrol.ParseTypedCode(typed)
		if !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), text[40:]) {
			t.Errorf("%s: the error repeats the code: %v", name, err)
		}
	}
}
