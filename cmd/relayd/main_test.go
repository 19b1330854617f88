package main

import (
	"bytes"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const good = "accept = [100]\n[appliance]\nurl = \"https://127.0.0.1:1\"\nca = \"ca.pem\"\n[[link]]\ntype = \"wire\"\nlisten = \"tcp:127.0.0.1:0\"\n"
	config := write("relay.toml", good)
	unknown := write("unknown.toml", "acept = [100]\n"+good)
	ca := write("ca.pem", "")
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	authority := write("authority.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	whole := write("whole.toml", strings.Replace(good, "ca.pem", authority, 1))
	const code = "OA1-AAAAAAAAAAAAAAAAAAAAAAAAAA-AAAAAAAAAAAAAAAAAAAA"
	for name, c := range map[string]struct {
		args []string
		want int
		says string
	}{
		"no verb":           {nil, 2, "enrol"},
		"unknown verb":      {[]string{"server"}, 2, "serve"},
		"good file":         {[]string{"config", "check", "--config", whole}, 0, "ok"},
		"two errors":        {[]string{"config", "check", "--config", write("two.toml", good+"[hook]\ncommand = [\"/none/hook\"]\n")}, 78, "hook: "},
		"empty CA file":     {[]string{"config", "check", "--config", config}, 78, "copy ca.pem"},
		"unknown key":       {[]string{"config", "check", "--config", unknown}, 78, "unknown.toml:1: unknown key acept"},
		"no file":           {[]string{"serve", "--config", filepath.Join(dir, "none")}, 78, "none"},
		"not enrolled":      {[]string{"serve", "--config", config}, 78, "relayd enrol"},
		"status, no device": {[]string{"status", "--state", dir}, 78, "not enrolled"},
		"enrol, no flags":   {[]string{"enrol", code}, 2, "url"},
		"enrol, bad code":   {[]string{"enrol", "--url", "https://127.0.0.1:1", "--ca", ca, "OA1-no"}, 2, "activation code"},
		"enrol over http":   {[]string{"enrol", "--url", "http://127.0.0.1:1", "--ca", ca, code}, 2, "want https://HOST:PORT"},
		"enrol at a path":   {[]string{"enrol", "--url", "https://127.0.0.1:1/v1", "--ca", ca, code}, 2, "nothing behind it"},
		"enrol without CA":  {[]string{"enrol", "--url", "https://127.0.0.1:1", code}, 2, "--config FILE, or --url URL and --ca FILE"},
		"enrol, bad file":   {[]string{"enrol", "--config", unknown, code}, 78, "unknown key acept"},
		"enrol, two URLs":   {[]string{"enrol", "--config", config, "--url", "https://127.0.0.1:2", code}, 2, `appliance.url in`},
		"enrol, two CAs":    {[]string{"enrol", "--config", config, "--ca", ca + "2", code}, 2, `appliance.ca in`},
		"enrol, two states": {[]string{"enrol", "--config", config, "--state", "elsewhere", code}, 2, `state_dir in`},
		"enrol, one of all": {[]string{"enrol", "--config", config, "--url", "https://127.0.0.1:1/", "--ca", ca, "--state", filepath.Join(dir, "var"), code}, 78, "no certificate"},
		"enrol by the file": {[]string{"enrol", "--config", config, code}, 78, "no certificate"},
		"enrol, empty CA":   {[]string{"enrol", "--url", "https://127.0.0.1:1", "--ca", ca, "--state", filepath.Join(dir, "s"), code}, 78, "no certificate"},
	} {
		var out, errs bytes.Buffer
		if got := run(c.args, strings.NewReader(""), &out, &errs); got != c.want || !strings.Contains(out.String()+errs.String(), c.says) {
			t.Errorf("%s: exit %d, %q; want %d and %q", name, got, out.String()+errs.String(), c.want, c.says)
		}
	}
}

func TestActivationCodeIsNotRepeated(t *testing.T) {
	const secret = "ABCDEFGHABCDEFGHABCD"
	var out, errs bytes.Buffer
	input := strings.NewReader("OA1-AAAAAAAAAAAAAAAAAAAAAAAAAA-" + secret + "\n")
	args := []string{"enrol", "--url", "https://127.0.0.1:1", "--ca", filepath.Join(t.TempDir(), "none"), "--state", t.TempDir(), "-"}
	if got := run(args, input, &out, &errs); got == 0 {
		t.Error("enrolled without an appliance")
	}
	if strings.Contains(out.String()+errs.String(), secret) {
		t.Errorf("the code's secret is printed: %s", errs.String())
	}
}
