package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/internal/config"
)

// configured writes a configuration with more lines at its beginning.
func configured(t *testing.T, lines string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "relay.toml")
	const rest = "accept = [100]\n[appliance]\nurl = \"https://127.0.0.1:1\"\nca = \"ca.pem\"\n[[link]]\ntype = \"wire\"\nlisten = \"tcp:127.0.0.1:0\"\n"
	for name, content := range map[string]string{path: lines + rest, filepath.Join(dir, "ca.pem"): ""} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// TestFatalErrorsInTheLog: with a log in JSON every line of standard error is JSON, an error that ends serve too; with
// a log in text it is printed as by other commands.
func TestFatalErrorsInTheLog(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for name, c := range map[string]struct {
		lines string
		code  int
		says  string
	}{
		"not enrolled":    {"", 78, "not enrolled"},
		"no display":      {"display = \"/none/display\"\n", 74, "opening display"},
		"operators' port": {fmt.Sprintf("ops.listen = %q\n", taken.Addr()), 74, "address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if got := run([]string{"serve", "--config", configured(t, c.lines)}, strings.NewReader(""), &out, &errs); got != c.code || out.Len() != 0 {
				t.Errorf("exit %d, printed %q; want %d and nothing", got, out.String(), c.code)
			}
			last := map[string]any{}
			for line := range strings.Lines(errs.String()) {
				if err := json.Unmarshal([]byte(line), &last); err != nil {
					t.Errorf("no JSON: %q", line)
				}
			}
			text, _ := last["error"].(string)
			hint, _ := last["hint"].(string)
			if last["@level"] != "error" || last["exit_code"] != float64(c.code) || !strings.Contains(text, c.says) || hint == "" {
				t.Errorf("the last line is %v", last)
			}
			errs.Reset()
			if got := run([]string{"serve", "--config", configured(t, "log.format = \"text\"\n"+c.lines)}, strings.NewReader(""), &out, &errs); got != c.code ||
				!strings.Contains(errs.String(), "error: ") || !strings.Contains(errs.String(), "hint: ") {
				t.Errorf("in text: exit %d, %q", got, errs.String())
			}
		})
	}
}

// TestDisplayOnStandardError: approvals are lines of the log in JSON, at any level, and plain beside a log in text.
func TestDisplayOnStandardError(t *testing.T) {
	for format, want := range map[string]string{
		"json": `"@message":"display","@module":"relayd"`,
		"text": "approved: service 200, 12.50 EUR\n",
	} {
		var errs bytes.Buffer
		c := &config.Relay{Display: "-", Log: config.Log{Format: format, Level: "error"}}
		display, err := openDisplay(c, &errs)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintln(display, "approved: service 200, 12.50 EUR"); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(errs.String(), want) || !strings.Contains(errs.String(), "approved: service 200, 12.50 EUR") {
			t.Errorf("%s: %q", format, errs.String())
		}
		if format == "json" && !json.Valid(errs.Bytes()) {
			t.Errorf("no JSON: %q", errs.String())
		}
	}
}
