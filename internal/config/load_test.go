package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// failure loads an appliance's configuration and returns the error text, with the file's name
// in place of its path.
func failure(t *testing.T, text string) string {
	t.Helper()
	path := write(t, "config.toml", text)
	a, err := LoadAppliance(path)
	return said(t, path, a != nil, err)
}

func said(t *testing.T, path string, loaded bool, err error) string {
	t.Helper()
	var e *Error
	if loaded || !errors.As(err, &e) {
		t.Fatalf("loaded %t, error %v; want an *Error", loaded, err)
	}
	if e.ExitCode() != 78 || e.Hint() == "" {
		t.Errorf("exit code %d, hint %q", e.ExitCode(), e.Hint())
	}
	return strings.ReplaceAll(err.Error(), filepath.Dir(path)+"/", "")
}

func TestEmptyFileIsTheDefaults(t *testing.T) {
	path := write(t, "config.toml", "")
	a, err := LoadAppliance(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if a.StateDir != dir+"/var" || a.Store.Path != dir+"/var/countersign.db" || a.HSM.Timeout.Duration != 2*time.Second {
		t.Errorf("%+v", a)
	}
}

func TestPaths(t *testing.T) {
	path := write(t, "config.toml", `
state_dir = "/srv/state"
hsm.module = "lib/module.so"
hsm.worker_binary = "bin/hsm-worker"
hsm.pin = { source = "file", path = "/run/pin" }
store.path = "../other.db"
`)
	a, err := LoadAppliance(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	for _, tc := range []struct{ got, want string }{
		{a.StateDir, "/srv/state"},
		{a.Admin.Socket, "/srv/state/admin.sock"},
		{a.Store.Path, filepath.Join(filepath.Dir(dir), "other.db")},
		{a.HSM.Module, dir + "/lib/module.so"},
		{a.HSM.WorkerBinary, dir + "/bin/hsm-worker"},
		{a.HSM.Pin.Path, "/run/pin"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %s, want %s", tc.got, tc.want)
		}
	}
}

func TestUnknownKeys(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"misspelt", "# one\n\n[hsm]\nmodul = \"x\"\n", "config.toml:4: unknown key hsm.modul (did you mean hsm.module?)"},
		{"another case", "[hsm]\nWorkers = 9\nworkers = 2\n", "config.toml:2: unknown key hsm.Workers (did you mean hsm.workers?)"},
		{"misspelt table, said once", "[hsn]\nmodule = \"x\"\nworkers = 1\n", "config.toml:1: unknown key hsn (did you mean hsm?)"},
		{"nothing near", "telemetry_endpoint = 1\n", "config.toml:1: unknown key telemetry_endpoint"},
		{"in a secret", "[hsm]\npin = { source = \"prompt\", pth = \"x\" }\n", "config.toml:2: unknown key hsm.pin.pth (did you mean hsm.pin.path?)"},
		{"dotted", "[api]\n[store]\nsqlite.path = 1\n", "config.toml:3: unknown key store.sqlite.path"},
		{"in the wrong table", "[hsm]\nlisten = \"x\"\n", "config.toml:2: unknown key hsm.listen"},
		{"two", "a1b2c3 = 1\n[log]\nlevl = \"info\"\n", "config.toml:1: unknown key a1b2c3\nconfig.toml:3: unknown key log.levl (did you mean log.level?)"},
		{"behind text that looks like it", "state_dir = \"\"\"/x\\\n  hmm = 1\\\n\"\"\"\nhmm = 1\n", "config.toml:4: unknown key hmm (did you mean hsm?)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := failure(t, tc.text); got != tc.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tc.want)
			}
		})
	}
}

func TestWrongValues(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"syntax", "[hsm]\nmodule = \n", "config.toml:2: hsm.module: expected value but found '\\n' instead"},
		{"type", "[hsm]\nworkers = \"2\"\n", "config.toml:2: hsm.workers: incompatible types: "},
		{"bare duration", "[hsm]\ntimeout = 2\n", `config.toml:2: hsm.timeout: want a string with a unit, such as "2s", found 2`},
		{"zero duration", "[hsm]\ntimeout = \"0\"\n", `config.toml:2: hsm.timeout: want a number with a unit, such as "2s", found "0"`},
		{"duration without unit", "[hsm]\ntimeout = \"2\"\n", `config.toml:2: hsm.timeout: want a number with a unit`},
		{"duration too long", "[hsm]\ntimeout = \"61s\"\n", `config.toml:2: hsm.timeout: "1m1s": want 10ms to 1m0s`},
		{"duplicate", "[log]\nlevel = \"info\"\nlevel = \"info\"\n", "config.toml:3: log.level: "},
		{"state_dir", "state_dir = \"\"\n", "config.toml:1: state_dir: missing"},
		{"module", "[hsm]\nmodule = \"\"\n", "config.toml:2: hsm.module: missing"},
		{"label", "[hsm]\ntoken_label = \"" + strings.Repeat("x", 33) + "\"\n", "has 33 bytes, at most 32 are possible"},
		{"serial", "[hsm]\ntoken_serial = \"" + strings.Repeat("1", 17) + "\"\n", "has 17 bytes, at most 16 are possible"},
		{"workers", "[hsm]\nworkers = 0\n", "config.toml:2: hsm.workers: 0: want 1 to 64"},
		{"sessions", "[hsm]\nsessions = 1025\n", "config.toml:2: hsm.sessions: 1025: want 1 to 1024"},
		{"driver", "[store]\ndriver = \"mysql\"\n", `config.toml:2: store.driver: "mysql": want sqlite`},
		{"api without port", "[api]\nlisten = \"localhost\"\n", `config.toml:2: api.listen: "localhost": want HOST:PORT`},
		{"api port", "[api]\nlisten = \"localhost:65536\"\n", `config.toml:2: api.listen: port "65536": want a number from 0 to 65535`},
		{"api name", "[api]\nnames = [\"a_b\"]\n", `config.toml:2: api.names: "a_b": want a DNS name`},
		{"no strangers", "[api]\nstrangers = 0\n", "config.toml:2: api.strangers: 0: want 16 to 4096"},
		{"no strangers of an address", "[api]\nstrangers_per_address = 0\n", "config.toml:2: api.strangers_per_address: 0: want 1 to 4096"},
		{"one connection", "[api]\nconnections_per_device = 1\n", "config.toml:2: api.connections_per_device: 1: want 2 to 256"},
		{"one request", "[api]\nrequests_per_device = 1\n", "config.toml:2: api.requests_per_device: 1: want 2 to 256"},
		{"api ip", "[api]\nips = [\"300.0.0.1\"]\n", "config.toml:2: api.ips: "},
		{"api unspecified ip", "[api]\nips = [\"0.0.0.0\"]\n", `config.toml:2: api.ips: "0.0.0.0": want an address that clients connect to`},
		{"no api name", "[api]\nnames = []\nips = []\n", "config.toml:2: api.names: neither names nor ips"},
		{"socket", "[admin]\nsocket = \"/" + strings.Repeat("s", 107) + "\"\n", "config.toml:2: admin.socket: the socket path has 108 bytes, at most 107 are possible"},
		{"ops on the network", "[ops]\nlisten = \"0.0.0.0:9443\"\n", `config.toml:2: ops.listen: "0.0.0.0:9443": want a loopback address`},
		{"ops on every address", "[ops]\nlisten = \":9443\"\n", `config.toml:2: ops.listen: ":9443": want a loopback address`},
		{"ops on a name", "[ops]\nlisten = \"localhost.example:1\"\n", `want a loopback address`},
		{"ops missing", "[ops]\nlisten = \"\"\n", `config.toml:2: ops.listen: "": want HOST:PORT`},
		{"root", "[trust]\nroot = \"03ab\"\n", `config.toml:2: trust.root: "03ab": want a public key, the 66 hexadecimal digits`},
		{"domain", "[trust]\ndomain = \"Example.org\"\n", `config.toml:2: trust.domain: "Example.org": want 1 to 255 lower-case`},
		{"log level", "[log]\nlevel = \"loud\"\n", `config.toml:2: log.level: "loud": want trace, debug, info, warn, error`},
		{"log format", "[log]\nformat = \"xml\"\n", `config.toml:2: log.format: "xml": want json, text`},
		{"table for a value", "[state_dir]\nx = 1\n", "config.toml:1: state_dir: incompatible types: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := failure(t, tc.text); !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
				t.Errorf("got:\n%s\nwant one line with:\n%s", got, tc.want)
			}
		})
	}
}

func TestEverythingAtOnce(t *testing.T) {
	got := failure(t, "[hsm]\nworkers = 0\nmodul = \"x\"\npin = { source = \"fd\" }\n[ops]\nlisten = \"1.2.3.4:5\"\n[log]\nlevel = \"\"\n")
	const want = `config.toml:2: hsm.workers: 0: want 1 to 64
config.toml:3: unknown key hsm.modul (did you mean hsm.module?)
config.toml:4: hsm.pin: source "fd" needs fd
config.toml:6: ops.listen: "1.2.3.4:5": want a loopback address such as 127.0.0.1, this listener has no protection
config.toml:8: log.level: "": want trace, debug, info, warn, error`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	a, err := LoadAppliance(path)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
	if got := said(t, path, a != nil, err); got != "config.toml: reading configuration: no such file or directory" {
		t.Errorf("got %s", got)
	}
}

func TestValidateInMemory(t *testing.T) {
	a := DefaultAppliance()
	a.resolve("/x")
	if err := a.Validate(); err != nil {
		t.Fatalf("defaults: %v", err)
	}
	a.HSM.Workers, a.Log.Format = -1, ""
	err := a.Validate()
	if err == nil || err.Error() != "hsm.workers: -1: want 1 to 64\nlog.format: \"\": want json, text" {
		t.Errorf("got %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("[hsm]\nworkers = 2\n")
	f.Add("hsm.pin = { source = \"fd\", fd = 3 }\n")
	f.Add("[hsm]\ntimeout = \"2s\"\nx = [\n1]\n")
	f.Fuzz(func(t *testing.T, text string) {
		a := DefaultAppliance()
		for _, problem := range decode(text, &a, "/x") {
			if problem.Text == "" {
				t.Errorf("a problem without text: %+v", problem)
			}
		}
	})
}
