package policy

import (
	"fmt"
	"strings"
	"testing"
)

// head begins a complete service; priced begins one that needs levels.
const (
	head   = "[[service]]\nid = 16\nname = \"a\"\n"
	priced = head + "currency = \"EUR\"\n"
	whole  = head + "level = 1\n"
)

func TestParseRefuses(t *testing.T) {
	const free = "levels = [{ from = \"0\", level = 1 }]\n"
	fiveWindows := ""
	for n := range 5 {
		fiveWindows += fmt.Sprintf("{ window = \"%dh\", from = \"5\", level = 2 }, ", n+1)
	}
	for _, tc := range []struct{ name, doc, want string }{
		{"empty", "", "no [[service]]"},
		{"no TOML", "[[service]]\nid = 16 17\n", "line 2: "},
		{"duplicate key", whole + "level = 2\n", "line 5: "},
		{"scalar service", "service = 5\n", "line 1: service: "},
		{"table service", "[service]\nid = 16\n", "line 1: service: "},
		{"unknown key at the top", "version = 1\n" + whole, "line 1: unknown key version"},
		{"unknown key", whole + "\n# note\nlevle = 2\n", "line 7: unknown key service.levle"},
		{"unknown key in another case", whole + "Level = 4\n", "line 5: unknown key service.Level"},
		{"unknown key in an array", priced + "levels = [\n  { from = \"0\", level = 1, lvl = 1 },\n]\n", "line 6: unknown key service.levels.lvl"},
		{"unknown table", whole + "[service.hours]\nopen = 8\n", "line 5: unknown key service.hours"},
		{"unknown dotted key", whole + "ttl.min = 2\n", "line 5: unknown key service.ttl.min"},

		{"no id", "[[service]]\nname = \"a\"\nlevel = 1\n", "line 1: service 1 of the document: id is missing"},
		{"id of the protocol", strings.Replace(whole, "16", "15", 1), "id 15: want 16 or more"},
		{"negative id", strings.Replace(whole, "16", "-16", 1), "id -16: want 16 or more"},
		{"id as a string", strings.Replace(whole, "16", `"16"`, 1), `id: want a whole number, found "16"`},
		{"no name", "[[service]]\nid = 16\nlevel = 1\n", "name is missing"},
		{"empty name", strings.Replace(whole, `"a"`, `""`, 1), `name "": want 1 to 64`},
		{"name with a blank", strings.Replace(whole, `"a"`, `"a b"`, 1), `name "a b": want 1 to 64`},
		{"name as a number", strings.Replace(whole, `"a"`, `7`, 1), "name: want a string, found 7"},
		{"same id", whole + strings.Replace(whole, `"a"`, `"b"`, 1), "line 5: service 16 (b): id 16 is already used by service 1 of the document"},
		{"same name", whole + strings.Replace(whole, "16", "17", 1), `line 5: service 17 (a): name "a" is already used by service 1`},

		{"no level", head, "service 16 (a): level is missing"},
		{"level 0", head + "level = 0\n", "level 0: want 1, 2, 3 or 4"},
		{"level 5", head + "level = 5\n", "level 5: want 1, 2, 3 or 4"},
		{"level 257", head + "level = 257\n", "level 257: want 1, 2, 3 or 4"},
		{"level as a string", head + "level = \"1\"\n", `level: want 1, 2, 3 or 4, found "1"`},
		{"level as a table", head + "level = { from = 1 }\n", "level: want 1, 2, 3 or 4, found another kind of value"},
		{"level and currency", priced + "level = 1\n" + free, "level and currency exclude each other"},
		{"currency without levels", priced, `levels are missing`},
		{"levels without currency", head + free, "levels need a currency"},
		{"currency in small letters", strings.Replace(priced, "EUR", "eur", 1) + free, `currency "eur": want three letters A to Z`},
		{"unknown currency", strings.Replace(priced, "EUR", "ZZZ", 1) + free, `currency "ZZZ": no active ISO 4217 code`},
		{"currency as a number", head + "currency = 978\n" + free, `currency: want a string such as "EUR", found 978`},

		{"first above zero", priced + "levels = [{ from = \"1.00\", level = 1 }]\n", `from "1.00": the first must be "0"`},
		{"equal amounts", priced + "levels = [{ from = \"0\", level = 1 }, { from = \"0.00\", level = 2 }]\n", `entry 2: from "0.00": must be above`},
		{"falling amounts", priced + "levels = [{ from = \"0\", level = 1 }, { from = \"9\", level = 2 }, { from = \"8\", level = 3 }]\n", `entry 3: from "8": must be above`},
		{"falling level", priced + "levels = [{ from = \"0\", level = 2 }, { from = \"9\", level = 1 }]\n", "entry 2: level 1: below the 2 of a smaller amount"},
		{"no from", priced + "levels = [{ level = 2 }]\n", "levels, entry 1: from is missing"},
		{"no level in an entry", priced + "levels = [{ from = \"0\" }]\n", "levels, entry 1: level is missing"},
		{"from as a number", priced + "levels = [{ from = 0, level = 1 }]\n", `from: want a string such as "50.00", found 0`},
		{"from as a float", priced + "levels = [{ from = 0.5, level = 1 }]\n", `from: want a string such as "50.00", found 0.5`},
		{"negative from", priced + "levels = [{ from = \"-1\", level = 1 }]\n", "want digits with at most one decimal point"},
		{"one digit of two", priced + "levels = [{ from = \"0.0\", level = 1 }]\n", "want 2 digits after the decimal point or none, found 1"},
		{"thousands comma", priced + "levels = [{ from = \"1,000\", level = 1 }]\n", "want digits with at most one decimal point"},
		{"leading zero", priced + "levels = [{ from = \"00\", level = 1 }]\n", "a leading zero is not allowed"},
		{"too much", priced + "levels = [{ from = \"10000000000000\", level = 1 }]\n", "at most 999999999999999 minor units"},
		{"overflow", priced + "levels = [{ from = \"99999999999999999999999\", level = 1 }]\n", "at most 999999999999999 minor units"},

		{"ttl as a number", whole + "ttl = 90\n", `ttl: want a string such as "1s", found 90`},
		{"ttl without unit", whole + "ttl = \"90\"\n", `ttl: want a string such as "1s", found "90"`},
		{"ttl too long", whole + "ttl = \"301s\"\n", `ttl "301s": want 1s to 5m0s`},
		{"ttl zero", whole + "ttl = \"0s\"\n", `ttl "0s": want 1s to 5m0s`},
		{"ttl of a part", whole + "ttl = \"1500ms\"\n", `ttl "1500ms": want whole seconds`},
		{"lifetime too long", whole + "lifetime = \"61m\"\n", `lifetime "61m": want 1s to 1h0m0s`},

		{"limit without window", whole + "limits = [{ count = 1 }]\n", "limit 1: window is missing"},
		{"limit of nothing", whole + "limits = [{ window = \"1h\" }]\n", "limit 1: count and amount are missing"},
		{"limit count zero", whole + "limits = [{ window = \"1h\", count = 0 }]\n", "limit 1: count 0: want 1 or more"},
		{"limit count as a string", whole + "limits = [{ window = \"1h\", count = \"3\" }]\n", `limit 1: count: want a whole number, found "3"`},
		{"limit window short", whole + "limits = [{ window = \"59s\", count = 1 }]\n", `limit 1: window "59s": want 1m0s to 744h0m0s`},
		{"money limit without currency", whole + "limits = [{ window = \"1h\", amount = \"5\" }]\n", "limit 1: amount needs the service to have a currency"},
		{"money limit of zero", priced + free + "limits = [{ window = \"1h\", amount = \"0\" }]\n", "limit 1: amount: want more than zero"},

		{"cumulated without currency", whole + "cumulated = [{ window = \"1h\", from = \"5\", level = 2 }]\n", "cumulated needs the service to have a currency"},
		{"cumulated without window", priced + free + "cumulated = [{ from = \"5\", level = 2 }]\n", "cumulated, entry 1: window is missing"},
		{"cumulated without from", priced + free + "cumulated = [{ window = \"1h\", level = 2 }]\n", "cumulated, entry 1: from is missing"},
		{"cumulated without level", priced + free + "cumulated = [{ window = \"1h\", from = \"5\" }]\n", "cumulated, entry 1: level is missing"},
		{"cumulated from zero", priced + free + "cumulated = [{ window = \"1h\", from = \"0\", level = 2 }]\n", `entry 1: from "0": want more than zero`},
		{"cumulated from as a number", priced + free + "cumulated = [{ window = \"1h\", from = 5, level = 2 }]\n", `entry 1: from: want a string such as "50.00", found 5`},
		{"cumulated at the lowest level", priced + free + "cumulated = [{ window = \"1h\", from = \"5\", level = 1 }]\n", "entry 1: level 1: every amount takes 1 already"},
		{"cumulated level 5", priced + free + "cumulated = [{ window = \"1h\", from = \"5\", level = 5 }]\n", "entry 1: level 5: want 1, 2, 3 or 4"},
		{"cumulated window short", priced + free + "cumulated = [{ window = \"59s\", from = \"5\", level = 2 }]\n", `entry 1: window "59s": want 1m0s to 744h0m0s`},
		{"cumulated window long", priced + free + "cumulated = [{ window = \"745h\", from = \"5\", level = 2 }]\n", `entry 1: window "745h": want 1m0s to 744h0m0s`},
		{"cumulated amounts fall", priced + free + "cumulated = [{ window = \"1h\", from = \"5\", level = 2 }, { window = \"60m\", from = \"5\", level = 3 }]\n", `entry 2: from "5": must be above the entry before for this window`},
		{"cumulated levels fall", priced + free + "cumulated = [{ window = \"1h\", from = \"5\", level = 2 }, { window = \"1h\", from = \"6\", level = 2 }]\n", "entry 2: level 2: must be above the 2 of a smaller sum in this window"},
		{"cumulated in five windows", priced + free + "cumulated = [" + fiveWindows + "]\n", "cumulated: 5 windows, at most 4 are allowed"},
		{"cumulated with another key", priced + free + "cumulated = [{ window = \"1h\", from = \"5\", level = 2, count = 3 }]\n", "unknown key service.cumulated.count"},
		{"too large", strings.Repeat("#", MaxDocument+1), "65537 bytes, at most 65536"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Parse([]byte(tc.doc))
			if err == nil || p != nil {
				t.Fatalf("accepted; want an error with %q", tc.want)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestParseReportsEverythingAtOnce(t *testing.T) {
	_, err := Parse([]byte(`colour = "red"

[[service]]
id = 3
name = "door.open"
level = 9
color = "red"

[[service]]
id = 200
name = "Pay"
currency = "EUR"
levels = [
  { from = "0.00", level = 1 },
  { from = 50, level = 2, color = "red" },
]
ttl = 90
color = "blue"
`))
	const want = `policy: line 1: unknown key colour
policy: line 3: service 1 of the document: id 3: want 16 or more, the protocol reserves the lower ones
policy: line 3: service 1 of the document: level 9: want 1, 2, 3 or 4
policy: line 7: unknown key service.color
policy: line 9: service 2 of the document: name "Pay": want 1 to 64 lower-case letters, digits, dots, dashes or underscores, a letter or digit first
policy: line 9: service 2 of the document: ttl: want a string such as "1s", found 90
policy: line 9: service 2 of the document: levels, entry 2: from: want a string such as "50.00", found 50
policy: line 15: unknown key service.levels.color
policy: line 18: unknown key service.color`
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

func TestLinesSurviveMultiLineValues(t *testing.T) {
	_, err := Parse([]byte("x = \"\"\"\n[[service]]\nid = 1\n\"\"\"\r\ny = [\n  1, # ]\n]\n[z] # [\n" + whole))
	const want = "policy: line 1: unknown key x\npolicy: line 5: unknown key y\npolicy: line 8: unknown key z"
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}
