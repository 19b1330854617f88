package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"countersign/internal/fault"
)

// Format selects how data is printed. It is a command-line flag; the zero value is
// FormatTable.
type Format uint8

// The formats.
const (
	FormatTable Format = iota
	FormatJSON
	FormatYAML
)

var formatNames = []string{"table", "json", "yaml"}

// ParseFormat reads what [Format.String] writes.
func ParseFormat(s string) (Format, error) {
	i := slices.Index(formatNames, s)
	if i < 0 {
		return FormatTable, fmt.Errorf("format %q: want %s", s, strings.Join(formatNames, ", "))
	}
	return Format(i), nil
}

func (f Format) String() string {
	if int(f) < len(formatNames) {
		return formatNames[f]
	}
	return fmt.Sprintf("unknown (%d)", uint8(f))
}

// Set makes Format a command-line flag.
func (f *Format) Set(s string) error {
	parsed, err := ParseFormat(s)
	if err == nil {
		*f = parsed
	}
	return err
}

// Type names the flag's value in help texts.
func (f *Format) Type() string { return "format" }

// AddOutputFlag gives a command, and those below it, the flag -o, --output.
func AddOutputFlag(cmd *cobra.Command) *Format {
	f := new(Format)
	cmd.PersistentFlags().VarP(f, "output", "o", "output format: "+strings.Join(formatNames, ", "))
	// It fails only if a flag is registered twice, which pflag refuses first.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formatNames, cobra.ShellCompDirectiveNoFileComp))
	return f
}

// Column is one column of a table.
type Column[T any] struct {
	Title string
	Value func(T) string
}

// Table prints values of one type: as its columns, or whole as JSON or YAML by
// their json tags.
type Table[T any] []Column[T]

// Printer is the destination and the format of data.
type Printer struct {
	Out    io.Writer
	Format Format
}

// List prints rows: a table with titles, or an array, empty if there are none.
// An error has exit code 74.
func (t Table[T]) List(p Printer, rows []T) error {
	if p.Format != FormatTable {
		return p.value(append([]T{}, rows...)) // an array, never null
	}
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	titles := make([]string, len(t))
	for i, column := range t {
		titles[i] = strings.ToUpper(column.Title)
	}
	fmt.Fprintln(w, strings.Join(titles, "\t"))
	for _, row := range rows {
		cells := make([]string, len(t))
		for i, column := range t {
			cells[i] = printable(column.Value(row))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	_ = w.Flush() // to memory
	return p.write(trimLines(b.Bytes()))
}

// One prints a single value: a line for each column, or an object. An error has
// exit code 74.
func (t Table[T]) One(p Printer, row T) error {
	if p.Format != FormatTable {
		return p.value(row)
	}
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, column := range t {
		fmt.Fprintf(w, "%s:\t%s\n", column.Title, printable(column.Value(row)))
	}
	_ = w.Flush() // to memory
	return p.write(trimLines(b.Bytes()))
}

// value prints v as JSON or YAML.
func (p Printer) value(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encoding output: %w", err)
	}
	doc := escapeNarrow(b.Bytes())
	if p.Format == FormatYAML {
		var err error
		if doc, err = yamlFromJSON(doc); err != nil {
			return fmt.Errorf("encoding output: %w", err)
		}
		return p.write(escapeWide(doc, func(r rune) string { return fmt.Sprintf(`\U%08x`, r) }))
	}
	return p.write(escapeWide(doc, func(r rune) string {
		high, low := utf16.EncodeRune(r)
		return fmt.Sprintf(`\u%04x\u%04x`, high, low)
	}))
}

func (p Printer) write(b []byte) error {
	if _, err := p.Out.Write(b); err != nil {
		return fault.Output.Of(err)
	}
	return nil
}

// escapeNarrow writes what a terminal does not show as itself, and encoding/json
// leaves as it is, in the form that JSON and YAML share: DEL, the C1 controls, and
// characters that change the direction of text. They occur in strings only.
func escapeNarrow(doc []byte) []byte {
	return escaped(doc, func(r rune) string {
		if r > 0xffff {
			return ""
		}
		return fmt.Sprintf(`\u%04x`, r)
	})
}

// escapeWide escapes such characters beyond U+FFFF too, which JSON and YAML write in
// different forms.
func escapeWide(doc []byte, form func(rune) string) []byte {
	return escaped(doc, func(r rune) string {
		if r > 0xffff {
			return form(r)
		}
		return fmt.Sprintf(`\u%04x`, r)
	})
}

// escaped replaces characters that are not printable by their form, unless that is "".
func escaped(doc []byte, form func(rune) string) []byte {
	var out []byte
	for _, r := range string(doc) {
		text := ""
		if r >= 0x7f && !unicode.IsPrint(r) {
			text = form(r)
		}
		if text == "" {
			text = string(r)
		}
		out = append(out, text...)
	}
	return out
}

func trimLines(b []byte) []byte {
	lines := bytes.Split(b, []byte("\n"))
	for i := range lines {
		lines[i] = bytes.TrimRight(lines[i], " ")
	}
	return bytes.Join(lines, []byte("\n"))
}
