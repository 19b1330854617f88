package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"countersign/internal/fault"
)

type device struct {
	Name  string            `json:"name"`
	Count int               `json:"count"`
	Tags  []string          `json:"tags"`
	More  map[string]any    `json:"more,omitempty"`
	Empty map[string]string `json:"empty"`
}

var devices = Table[device]{
	{"Name", func(d device) string { return d.Name }},
	{"Count", func(d device) string { return strconv.Itoa(d.Count) }},
}

var twoDevices = []device{
	{Name: "gate <1>", Count: 3, Tags: []string{"a", "no"}, Empty: map[string]string{}},
	{Name: "x\x1b[2J\u009bé", More: map[string]any{"yes": []any{[]any{1.5, true}, map[string]any{"b": nil, "c d": "1e3"}}}},
}

func TestList(t *testing.T) {
	for _, tc := range []struct {
		format Format
		rows   []device
		want   string
	}{
		{FormatTable, twoDevices, "NAME               COUNT\ngate <1>           3\nx\\u001b[2J\\u009bé  0\n"},
		{FormatTable, nil, "NAME  COUNT\n"},
		{FormatJSON, nil, "[]\n"},
		{FormatYAML, nil, "[]\n"},
		{FormatJSON, twoDevices[:1], `[
  {
    "name": "gate <1>",
    "count": 3,
    "tags": [
      "a",
      "no"
    ],
    "empty": {}
  }
]
`},
		{FormatYAML, twoDevices, `- name: "gate <1>"
  count: 3
  tags:
    - "a"
    - "no"
  empty: {}
- name: "x\e[2J\x9Bé"
  count: 0
  tags: null
  more:
    "yes":
      - - 1.5
        - true
      - b: null
        c d: "1e3"
  empty: null
`},
	} {
		t.Run(tc.format.String(), func(t *testing.T) {
			var out bytes.Buffer
			if err := devices.List(Printer{&out, tc.format}, tc.rows); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.want {
				t.Errorf("got:\n%s\nwant:\n%s", out.String(), tc.want)
			}
		})
	}
}

func TestOne(t *testing.T) {
	for format, want := range map[Format]string{
		FormatTable: "Name:   gate <1>\nCount:  3\n",
		FormatYAML:  "name: \"gate <1>\"\ncount: 3\ntags:\n  - \"a\"\n  - \"no\"\nempty: {}\n",
	} {
		var out bytes.Buffer
		if err := devices.One(Printer{&out, format}, twoDevices[0]); err != nil || out.String() != want {
			t.Errorf("%s: %v, got:\n%s\nwant:\n%s", format, err, out.String(), want)
		}
	}
	var out bytes.Buffer
	if err := devices.One(Printer{&out, FormatJSON}, twoDevices[1]); err != nil {
		t.Fatal(err)
	}
	var back device
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.Name != twoDevices[1].Name {
		t.Errorf("read back as %q, %v", back.Name, err)
	}
	if strings.ContainsAny(out.String(), "\x1b\u009b") {
		t.Errorf("control characters in %q", out.String())
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestOutputFailures(t *testing.T) {
	for _, format := range []Format{FormatTable, FormatJSON, FormatYAML} {
		err := devices.List(Printer{fullDisk{}, format}, twoDevices)
		if code, _ := codeOf(err); code != fault.IO || err.Error() != "writing output: no space left on device" {
			t.Errorf("%s: exit code %d, %v", format, code, err)
		}
	}
	bad := Table[chan int]{}
	if err := bad.One(Printer{fullDisk{}, FormatJSON}, nil); err == nil || !strings.HasPrefix(err.Error(), "encoding output: ") {
		t.Errorf("a value without JSON form: %v", err)
	}
}

func TestOutputFlag(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		code   int
		stdout string
	}{
		{nil, 0, "NAME  COUNT\n"},
		{[]string{"-o", "json"}, 0, "[]\n"},
		{[]string{"--output=table"}, 0, "NAME  COUNT\n"},
		{[]string{"-o", "xml"}, 2, ""},
		{[]string{"-o"}, 2, ""},
	} {
		cmd := &cobra.Command{Use: "list"}
		format := AddOutputFlag(cmd)
		cmd.RunE = func(c *cobra.Command, _ []string) error {
			return devices.List(Printer{c.OutOrStdout(), *format}, nil)
		}
		got := run(cmd, tc.args...)
		if got.code != tc.code || got.stdout != tc.stdout {
			t.Errorf("%v: %+v", tc.args, got)
		}
		if tc.code == 2 && strings.Contains(strings.Join(tc.args, " "), "xml") && !strings.Contains(got.stderr, `format "xml": want table, json, yaml`) {
			t.Errorf("%v: %s", tc.args, got.stderr)
		}
	}
	for _, name := range formatNames {
		if f, err := ParseFormat(name); err != nil || f.String() != name {
			t.Errorf("%s: %s, %v", name, f, err)
		}
	}
	if Format(9).String() != "unknown (9)" {
		t.Error("format 9 has a name")
	}
}

func TestYAMLRefuses(t *testing.T) {
	for _, bad := range []string{"", "{", "[1", `{"a"`, `{"a":}`, "1 2", "]"} {
		if out, err := yamlFromJSON([]byte(bad)); err == nil {
			t.Errorf("%q became %q", bad, out)
		}
	}
}

// No output moves the cursor, or turns text around: what others wrote is shown as itself.
func TestHostileText(t *testing.T) {
	const text = "a\x1b[2Jb\u202ec\u2066d\u200fe\u009bf\ue000g\U000e0001h\r"
	type row struct {
		Text string `json:"text"`
	}
	table := Table[row]{{Title: "Text", Value: func(r row) string { return r.Text }}}
	for _, format := range []Format{FormatTable, FormatJSON, FormatYAML} {
		var out bytes.Buffer
		p := Printer{Out: &out, Format: format}
		if err := errors.Join(table.One(p, row{text}), table.List(p, []row{{text}})); err != nil {
			t.Fatal(err)
		}
		if bad := strings.IndexFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); bad >= 0 {
			t.Errorf("%v: %q", format, out.String())
		}
		if format == FormatJSON {
			var back row
			if err := json.NewDecoder(&out).Decode(&back); err != nil || back.Text != text {
				t.Errorf("JSON gives %q, %v", back.Text, err)
			}
		}
		if format == FormatYAML {
			var back row
			if err := yaml.Unmarshal(out.Bytes()[:bytes.IndexByte(out.Bytes(), '\n')+1], &back); err != nil || back.Text != text {
				t.Errorf("YAML gives %q, %v", back.Text, err)
			}
		}
	}
	if got := PrintableText("x\ty\u202e\n\n\x1b\nend"); got != "x\ty\\u202e\n\n\\u001b\nend" {
		t.Errorf("text %q", got)
	}
}
