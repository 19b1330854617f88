package tomldoc

import (
	"slices"
	"strconv"
	"testing"

	"github.com/BurntSushi/toml"
)

func TestLocate(t *testing.T) {
	const doc = "a = 1 # one\n\n[t]\nb = [\n 1,\n 2]\n[[s]]\nc = { d = \"\"\"\nd = 3\n\"\"\" }\n[[s]]\nc.e = 2\n"
	md, err := toml.Decode(doc, new(map[string]any))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range Locate(doc, md) {
		got = append(got, k.Path.String()+":"+strconv.Itoa(k.Line))
	}
	want := []string{"a:1", "t:3", "t.b:4", "s:7", "s.c:8", "s.c.d:8", "s:11", "s.c.e:12"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		doc, key, text string
		line           int
	}{
		{"a = 1\nb = \n", "b", "expected value but found '\\n' instead", 2},
		{"[t]\nn = \"x\"\n", "t.n", "incompatible types: TOML value has type string; destination has type integer", 2},
	} {
		var into struct{ T struct{ N int } }
		_, err := toml.Decode(tc.doc, &into)
		if line, key, text := Explain(err); line != tc.line || key != tc.key || text != tc.text {
			t.Errorf("%q: line %d, key %q, text %q", tc.doc, line, key, text)
		}
	}
}
