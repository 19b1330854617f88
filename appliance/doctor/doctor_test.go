package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/appliance/adminapi"
	"countersign/hsm"
	"countersign/internal/config"
	"countersign/internal/fault"
)

// patient is an installation whose files are right.
type patient struct {
	*testing.T
	dir    string
	config Config
	opened int // how often the doctor opened store and token
	found  []adminapi.Examination
	err    error // of Open
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	p := &patient{T: t, dir: t.TempDir()}
	for name, mode := range map[string]os.FileMode{"pin": 0o600, "module.so": 0o755, "hsm-worker": 0o755, "countersign.db": 0o600} {
		p.write(name, "", mode)
	}
	p.write("config.toml", fmt.Sprintf(`state_dir = %q
[hsm]
module = "module.so"
pin = { source = "file", path = "pin" }
[store]
path = "countersign.db"
[admin]
socket = "admin.sock"
[api]
listen = "127.0.0.1:0"
[trust]
domain = "example.test"
`, p.dir), 0o600)
	if err := os.Chmod(p.dir, 0o700); err != nil { //nolint:gosec // a directory
		t.Fatal(err)
	}
	p.config = Config{
		Path: p.path("config.toml"), LeastFree: 1, Timeout: 10 * time.Second,
		AnchorPath:   func(*config.Appliance) string { return p.path("anchor") },
		WorkerBinary: func(*config.Appliance) (string, error) { return p.path("hsm-worker"), nil },
		Explain: func(err error) error {
			if errors.Is(err, hsm.ErrPIN) {
				return fault.Row{Exit: fault.Auth, Advice: "check the PIN"}.Of(err)
			}
			return err
		},
		Open: func(context.Context, *config.Appliance) ([]adminapi.Examination, error) {
			p.opened++
			return []adminapi.Examination{{Check: "hsm", Status: adminapi.CheckOK}}, p.err
		},
	}
	return p
}

func (p *patient) path(name string) string { return filepath.Join(p.dir, name) }

func (p *patient) write(name, content string, mode os.FileMode) {
	p.Helper()
	if err := errors.Join(os.WriteFile(p.path(name), []byte(content), mode), os.Chmod(p.path(name), mode)); err != nil {
		p.Fatal(err)
	}
}

// examine returns the statuses by check.
func (p *patient) examine() map[string]string {
	p.found = Examine(p.Context(), p.config)
	statuses := map[string]string{}
	for _, e := range p.found {
		statuses[e.Check] = e.Status
	}
	return statuses
}

// code returns the exit code of the verdict.
func (p *patient) code() fault.Code {
	var e *fault.Error
	switch err := Verdict(p.found); {
	case err == nil:
		return fault.OK
	case errors.As(err, &e):
		return e.Code
	default:
		p.Fatal(err)
		return fault.Failed
	}
}

// TestFiles: each wrong file is a failed check with its exit code. All other files stay right.
func TestFiles(t *testing.T) {
	for _, c := range []struct {
		name, check, status string
		code                fault.Code
		harm                func(*patient)
	}{
		{"nothing", "state_dir", "ok", fault.Failed, func(*patient) {}}, // the anchor is missing
		{"open state_dir", "state_dir", "fail", fault.Config, func(p *patient) { _ = os.Chmod(p.dir, 0o755) }},
		{"open pin", "pin", "fail", fault.Auth, func(p *patient) { p.write("pin", "", 0o644) }},
		{"no pin", "pin", "fail", fault.Auth, func(p *patient) { _ = os.Remove(p.path("pin")) }},
		{"open store", "store file", "fail", fault.Config, func(p *patient) { p.write("countersign.db", "", 0o640) }},
		{"socket is a file", "admin socket", "fail", fault.Config, func(p *patient) { p.write("admin.sock", "", 0o600) }},
		{"writable module", "module", "fail", fault.Unavailable, func(p *patient) { p.write("module.so", "", 0o777) }},
		{"worker not executable", "worker binary", "fail", fault.Config, func(p *patient) { p.write("hsm-worker", "", 0o644) }},
		{"damaged anchor", "anchor", "fail", fault.Failed, func(p *patient) { p.write("anchor", "x", 0o600) }},
		{"PIN refused", "pin guard", "fail", fault.Auth, func(p *patient) { p.write("pin-refused", "", 0o600) }},
		{"no disk space", "disk", "fail", fault.IO, func(p *patient) { p.config.LeastFree = 1 << 62 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPatient(t)
			c.harm(p)
			if got := p.examine()[c.check]; got != c.status {
				t.Errorf("%s is %q, want %q: %+v", c.check, got, c.status, p.found)
			}
			if got := p.code(); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
		})
	}
}

// TestConfiguration: without a configuration there is nothing else to check.
func TestConfiguration(t *testing.T) {
	p := newPatient(t)
	p.config.Path = p.path("absent.toml")
	if p.examine(); len(p.found) != 1 || p.found[0].Check != "configuration" || p.code() != fault.Config || p.opened != 0 {
		t.Errorf("%+v, exit code %d", p.found, p.code())
	}
}

// TestWithoutDaemon: the doctor opens store and token itself, but neither a store that does not exist nor a token
// that refused its PIN.
func TestWithoutDaemon(t *testing.T) {
	p := newPatient(t)
	if s := p.examine(); s["daemon"] != "warn" || s["hsm"] != "ok" || p.opened != 1 {
		t.Errorf("%v, opened %d times", s, p.opened)
	}
	p.err = fmt.Errorf("opening the token: %w", hsm.ErrPIN)
	s := p.examine()
	if last := p.found[len(p.found)-2]; s["service"] != "fail" || last.ExitCode != int(fault.Auth) || last.Advice != "check the PIN" {
		t.Errorf("%+v", p.found)
	}
	p.write("pin-refused", "", 0o600)
	if p.examine(); p.opened != 2 {
		t.Error("the PIN was tried though the token refused it before")
	}
	if err := errors.Join(os.Remove(p.path("pin-refused")), os.Remove(p.path("countersign.db"))); err != nil {
		t.Fatal(err)
	}
	if s := p.examine(); s["store"] != "fail" || p.opened != 2 {
		t.Errorf("%v, opened %d times", s, p.opened)
	}
}

// TestLostHost: without store and anchor only the store fails, and the advice is not to create an appliance.
func TestLostHost(t *testing.T) {
	p := newPatient(t)
	if err := os.Remove(p.path("countersign.db")); err != nil {
		t.Fatal(err)
	}
	s := p.examine()
	if s["anchor"] != "ok" || s["store"] != "fail" || p.opened != 0 {
		t.Errorf("%v, opened %d times", s, p.opened)
	}
	if last := p.found[len(p.found)-1]; !strings.Contains(last.Advice, "countersignd restore") || !strings.Contains(last.Advice, "put its database back") {
		t.Errorf("advice %q", last.Advice)
	}
}

// TestBesideDaemon: a daemon that answers is asked, and nothing is opened.
func TestBesideDaemon(t *testing.T) {
	p := newPatient(t)
	listener, err := net.Listen("unix", p.path("admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	answer := `[{"check":"hsm","status":"fail","detail":"gone","exit_code":69}]`
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/admin/doctor" || answer == "" {
			http.Error(w, "no", http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte(answer))
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	if err := os.Chmod(p.path("admin.sock"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := p.examine(); s["daemon"] != "ok" || s["hsm"] != "fail" || s["certificate"] != "fail" || p.opened != 0 {
		t.Errorf("%v, opened %d times", s, p.opened)
	}
	answer = ""
	if s := p.examine(); s["service"] != "fail" || p.opened != 0 {
		t.Errorf("%v", s)
	}
}

// TestVerdict: the exit code comes from the most urgent failure, and the advice from the first.
func TestVerdict(t *testing.T) {
	fail := func(check string, code fault.Code) adminapi.Examination {
		return adminapi.Examination{Check: check, Status: adminapi.CheckFail, ExitCode: int(code), Advice: "look at " + check}
	}
	warn := adminapi.Examination{Check: "w", Status: adminapi.CheckWarn}
	for _, c := range []struct {
		found []adminapi.Examination
		want  fault.Code
	}{
		{[]adminapi.Examination{warn}, fault.OK},
		{[]adminapi.Examination{warn, fail("a", fault.Failed)}, fault.Failed},
		{[]adminapi.Examination{fail("a", fault.Failed), fail("b", fault.Unavailable), fail("c", fault.IO)}, fault.IO},
		{[]adminapi.Examination{fail("a", fault.Auth), fail("b", fault.Config)}, fault.Config},
		{[]adminapi.Examination{fail("a", 123)}, fault.Failed},
	} {
		p := &patient{T: t, found: c.found}
		if got := p.code(); got != c.want {
			t.Errorf("%+v: exit code %d, want %d", c.found, got, c.want)
		}
	}
	err := Verdict([]adminapi.Examination{fail("a", fault.Auth), fail("b", fault.Config)})
	if !strings.HasPrefix(err.Error(), "2 of 2 checks failed, a first") {
		t.Error(err)
	}
}
