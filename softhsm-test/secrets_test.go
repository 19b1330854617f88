package softhsmtest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/password"
	"countersign/softhsm-test/harness"
)

// encodings are how a secret could be written, in text and in binary files. base64
// of a longer value has the secret at any of three alignments.
func encodings(secret []byte) [][]byte {
	out := [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret)))}
	for shift := range 3 {
		for _, alphabet := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := alphabet.EncodeToString(append(make([]byte, shift), secret...))
			out = append(out, []byte(text[(8*shift+5)/6:len(text)-1]))
		}
	}
	return out
}

// secrets are what must not be found, by name.
type secrets map[string][]byte

// in names the secrets that are in some text or file.
func (s secrets) in(raw []byte) (found []string) {
	for what, secret := range s {
		if slices.ContainsFunc(encodings(secret), func(e []byte) bool { return bytes.Contains(raw, e) }) {
			found = append(found, what)
		}
	}
	return found
}

// TestEncodings: the search finds each encoding.
func TestEncodings(t *testing.T) {
	secret := []byte("\x00\xfbcanary\xff\xfe of 17 bytes")
	s := secrets{"canary": secret}
	longer := slices.Concat([]byte("a"), secret, []byte("zz"))
	for name, raw := range map[string]string{
		"raw": string(longer), "hex": fmt.Sprintf("%x", longer), "HEX": fmt.Sprintf("%X", longer),
		"base64": base64.StdEncoding.EncodeToString(longer), "base64url": base64.RawURLEncoding.EncodeToString(longer),
		"base64 by 1": base64.StdEncoding.EncodeToString(longer[1:]), "base64 by 2": base64.StdEncoding.EncodeToString(append([]byte("b"), longer...)),
	} {
		if s.in([]byte(raw)) == nil {
			t.Errorf("%s: not found in %q", name, raw)
		}
	}
	if found := s.in(longer[2:]); found != nil {
		t.Errorf("%v is found in what is cut short", found)
	}
}

// TestSecrets looks for canaries where they must not be: PINs, activation codes, the password and
// keys derived from it, the phone's secret, and the identity of clients in logs and metrics.
func TestSecrets(t *testing.T) {
	allowCores(t)
	b := newBench(t, "GOTRACEBACK=crash")
	open := must[string](t)(b.Invite(t.Context(), "client", "carol"))
	p := b.phone("alice")
	wantResult(t, b.authorize(p, p.Next(100)), message.P4{Result: protocol.ResultApproved})
	wantLinkError(t, b.ask([]byte{0x11, 1, 2}), protocol.CodeFormat)
	dora := b.canary()
	all := maps.Clone(dora.secrets)
	res := must[*http.Response](t)(http.Get(b.Ops + "/metrics"))
	metrics := must[[]byte](t)(io.ReadAll(res.Body))
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(metrics, []byte("countersign_")) {
		t.Errorf("metrics: %.200s", metrics)
	}
	audit := must[harness.Result](t)(b.Ctl(t.Context(), "audit", "tail", "-o", "json"))
	if !strings.Contains(audit.Stdout, `"refused"`) { // the wrong password
		t.Errorf("audit: %.200s", audit.Stdout)
	}
	b.remembers(dora.secrets)
	for _, name := range []string{"pin", "so-pin"} {
		all[name] = bytes.TrimSpace(must[[]byte](t)(os.ReadFile(filepath.Join(b.Config.Dir, name))))
	}
	all["activation code"] = []byte(open[strings.LastIndexByte(open, '-')+1:]) // the secret part
	b.crash(dora.relay)
	operators := secrets{"client id": []byte(p.ID.String()), "client id of dora": []byte(dora.id.String())}
	maps.Copy(operators, all)
	for place, text := range map[string]string{
		"log": b.Appliance.Log(), "metrics": string(metrics), "log of the relay": dora.relay.Log(),
	} {
		if found := operators.in([]byte(text)); found != nil {
			t.Errorf("%v is in the %s", found, place)
		}
	}
	for place, text := range map[string]string{"audit": audit.Stdout, "output of the client": dora.said} {
		if found := all.in([]byte(text)); found != nil {
			t.Errorf("%v is in the %s", found, place)
		}
	}
	b.scan(all)
}

// canaried is a phone of countersign-client whose password is a canary.
type canaried struct {
	secrets secrets
	id      protocol.ClientID
	relay   *harness.Daemon // a second one, where it has been as well
	said    string          // all that countersign-client printed
}

// canary enrols the phone and uses its password: right, wrong, at levels 2 and 3, at
// a strict relay, until it is locked.
func (b *bench) canary() canaried {
	b.Helper()
	const right, wrong = "Zitronenfalter 37, canary", "Trauermantel 38, canary"
	state := filepath.Join(b.TempDir(), "dora")
	c := canaried{}
	call := func(want int, stdin string, args ...string) {
		b.Helper()
		r := must[harness.Result](b.T)(programs.Run(b.Context(), harness.Call{
			Program: "countersign-client", Args: append([]string{"--state", state, "-o", "json", "--password-fd", "0"}, args...), Stdin: stdin,
			Dir: b.Config.Cwd, Env: b.Config.Env,
		}))
		if c.said += r.Stdout + r.Stderr; r.Code != want {
			b.Fatalf("%v: exit code %d: %s", args, r.Code, r.Stderr)
		}
	}
	code := must[string](b.T)(b.Invite(b.Context(), "client", "dora"))
	codeFile := filepath.Join(b.TempDir(), "code")
	if err := os.WriteFile(codeFile, []byte(code+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	call(0, right+"\n", "enrol", "--uv", "--url", b.URL, "--code-file", codeFile)
	var link string
	c.relay, link = b.strictRelay()
	call(0, wrong+"\n"+right+"\n", "authorize", "--link", b.Link, "--service", "100", "--level", "2", "--yes")
	call(0, right+"\n", "authorize", "--link", link, "--service", "300", "--yes", "--receipt")
	call(0, right+"\n", "dry-run", "--link", link, "--level", "2", "--yes")
	call(3, strings.Repeat(wrong+"\n", 3), "authorize", "--link", b.Link, "--service", "100", "--level", "2", "--yes")
	call(3, strings.Repeat(wrong+"\n", 2), "authorize", "--link", link, "--service", "100", "--level", "2", "--yes")
	c.secrets = secrets{"password": []byte(right), "wrong password": []byte(wrong)}
	c.derive(b, state, right)
	return c
}

// derive reads what the phone keeps, and computes from it what it computed.
func (c *canaried) derive(b *bench, state, right string) {
	b.Helper()
	var kept struct {
		Enrolment struct {
			SigningKey protocol.Base64 `json:"signing_key"`
			Password   struct {
				Salt        protocol.Base64 `json:"salt"`
				MemoryKiB   uint32          `json:"memory_kib"`
				Iterations  uint32          `json:"iterations"`
				Parallelism uint8           `json:"parallelism"`
				DS          protocol.Base64 `json:"secret"`
			} `json:"password"`
		} `json:"enrolment"`
	}
	raw := must[[]byte](b.T)(os.ReadFile(filepath.Join(state, "state.json")))
	if err := json.Unmarshal(raw, &kept); err != nil {
		b.Fatal(err)
	}
	k := kept.Enrolment.Password
	if len(k.DS) != 32 || len(k.Salt) != password.SaltSize {
		b.Fatalf("the state has no password: %v", len(k.DS))
	}
	c.id = protocol.ClientIDOf(must[protocol.PublicKey](b.T)(protocol.ParsePublicKey(kept.Enrolment.SigningKey)))
	stretched := must[password.Stretched](b.T)(password.Stretch(right, password.Salt(k.Salt), password.Params{
		MemoryKiB: k.MemoryKiB, Iterations: k.Iterations, Parallelism: k.Parallelism,
	}))
	bound := password.DeviceSecret(k.DS).Bind(c.id, stretched)
	verifier := bound.Verifier()
	c.secrets["phone secret DS"], c.secrets["stretched password"] = k.DS, stretched[:]
	c.secrets["bound password"], c.secrets["verifier K_pw"] = bound[:], verifier[:]
	if (secrets{"DS": k.DS}).in(raw) == nil {
		b.Error("DS is not found where it is")
	}
}

const strictRelayTOML = `state_dir = %q
accept = [100, 300]
strict = true
display = "relay.display"
[appliance]
url = %q
ca = %q
[[link]]
type = "wire"
listen = "tcp:127.0.0.1:0"
[hook]
command = ["/bin/sh", "-c", "cat >> relay.hook"]
[log]
level = "trace"
`

// strictRelay starts a relay that is told all that a relay may be told.
func (b *bench) strictRelay() (*harness.Daemon, string) {
	b.Helper()
	code := must[string](b.T)(b.Invite(b.Context(), "device", "till"))
	state := filepath.Join(b.Config.Cwd, "till")
	r := must[harness.Result](b.T)(programs.Run(b.Context(), harness.Call{Program: "relayd", Args: []string{"enrol", "--url", b.URL, "--ca", b.CA, "--state", state}, Stdin: code + "\n"}))
	if r.Code != 0 {
		b.Fatalf("relayd enrol: exit code %d: %s", r.Code, r.Stderr)
	}
	config := state + ".toml"
	if err := os.WriteFile(config, fmt.Appendf(nil, strictRelayTOML, state, b.URL, b.CA), 0o600); err != nil {
		b.Fatal(err)
	}
	d := must[*harness.Daemon](b.T)(programs.Start(harness.Call{Program: "relayd", Args: []string{"serve", "--config", config}, Dir: b.Config.Cwd, Env: b.Config.Env}))
	b.Cleanup(func() { _ = d.Kill() }) // it has crashed by then, or the test has failed
	link := regexp.MustCompile(`"links":\["(tcp:[^"]+)"\]`)
	var found []string
	err := harness.Until(b.Context(), "the relay", func() (bool, error) {
		found = link.FindStringSubmatch(d.Log())
		return found != nil, nil
	})
	if err != nil {
		b.Fatalf("%v: %s", err, d.Log())
	}
	return d, found[1]
}

// allowCores lets the programs dump core, where the machine's limits do.
func allowCores(t *testing.T) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: was.Max, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_CORE, &was) }) // the limit was allowed before
}

// crash makes every program die as if of a fault, first the relay. They leave no core, where
// another program does.
func (b *bench) crash(relay *harness.Daemon) {
	b.Helper()
	abort := func(pid int) {
		if err := syscall.Kill(pid, syscall.SIGABRT); err != nil {
			b.Fatal(err)
		}
	}
	other := exec.CommandContext(b.Context(), "/bin/sleep", "60")
	other.Dir = b.Config.Cwd
	if err := other.Start(); err != nil {
		b.Fatal(err)
	}
	abort(other.Process.Pid)
	_ = other.Wait() // the signal
	if cores := b.cores(); b.dumpsHere() && len(cores) != 1 {
		b.Errorf("cores of another program: %v", cores)
	} else if len(cores) == 1 {
		if err := os.Remove(cores[0]); err != nil {
			b.Fatal(err)
		}
	}
	abort(relay.PID())
	must[int](b.T)(relay.Wait(b.Context()))
	children := must[[]harness.Process](b.T)(b.Children())
	for _, c := range children {
		if c.Name == "hsm-worker" {
			abort(c.PID)
		}
	}
	abort(b.PID())
	must[int](b.T)(b.Wait(b.Context()))
	for _, c := range children {
		if err := c.Wait(b.Context()); err != nil {
			b.Error(err)
		}
	}
	if cores := b.cores(); len(children) != 3 || len(cores) != 0 {
		b.Errorf("of %d children and the appliance there are cores: %v", len(children), cores)
	}
}

func (b *bench) cores() []string {
	b.Helper()
	return must[[]string](b.T)(filepath.Glob(filepath.Join(b.Config.Cwd, "core*")))
}

// dumpsHere says whether this machine puts cores into the working directory.
func (b *bench) dumpsHere() bool {
	b.Helper()
	pattern := must[[]byte](b.T)(os.ReadFile("/proc/sys/kernel/core_pattern"))
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		b.Fatal(err)
	}
	return bytes.HasPrefix(pattern, []byte("core")) && limit.Cur != 0
}

// remembers searches the memory of the running appliance for what only the phone
// and the token may know, where this user may read it.
func (b *bench) remembers(s secrets) {
	b.Helper()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", b.PID()))
	if errors.Is(err, fs.ErrPermission) {
		b.Logf("the appliance's memory may not be read here, not even by its own user: not searched")
		return
	}
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = memory.Close() }() // only read
	regions := string(must[[]byte](b.T)(os.ReadFile(fmt.Sprintf("/proc/%d/maps", b.PID()))))
	known := false
	for line := range strings.Lines(regions) {
		if fields := strings.Fields(line); !strings.HasPrefix(fields[1], "rw") {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			b.Fatalf("%q: %v", line, err)
		}
		raw := make([]byte, to-from)
		n, _ := memory.ReadAt(raw, from) // what cannot be read is no memory
		known = known || bytes.Contains(raw[:n], []byte("spiffe://dev.countersign.example/device/till"))
		if found := s.in(raw[:n]); found != nil {
			b.Errorf("%v is in the appliance's memory, %s", found, line)
		}
	}
	if !known {
		b.Error("what the appliance does know is not found in its memory")
	}
}

// scan searches every file of the test except the PIN files, and checks the permissions of the
// appliance's files. The phone's state is elsewhere.
func (b *bench) scan(s secrets) {
	b.Helper()
	err := filepath.WalkDir(b.Config.Cwd, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if mode := info.Mode().Perm(); strings.HasPrefix(path, b.Config.Dir) && mode&0o077 != 0 {
			b.Errorf("%s has mode %04o", path, mode)
		}
		if name := entry.Name(); !entry.Type().IsRegular() || name == "pin" || name == "so-pin" {
			return nil
		}
		raw, err := os.ReadFile(path)
		if found := s.in(raw); found != nil {
			b.Errorf("%v is in %s", found, path)
		}
		return err
	})
	if err != nil {
		b.Error(err)
	}
}
