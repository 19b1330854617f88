package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/client"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/clienttest"
)

const right, wrong = "correct horse", "battery staple"

func secretFile(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// passwordShell is enrolled with a password and a UV key.
func passwordShell(t *testing.T, a *clienttest.Appliance) shell {
	t.Helper()
	s := shell{t: t, state: filepath.Join(t.TempDir(), "state"), stdin: strings.NewReader(right + "\n")}
	stdout, _ := s.want(0, "enrol", "--url", a.Serve(), "--uv", "--password-fd", "0", a.Invite().String(), "-o", "json")
	if got := decode(t, stdout)["factors"]; got != (protocol.FactorSignature | protocol.FactorPassword | protocol.FactorUV).String() {
		t.Fatalf("factors %v", got)
	}
	return s
}

func TestPasswordSources(t *testing.T) {
	a := clienttest.New(t)
	s, link := passwordShell(t, a), a.Listen("tcp")
	vault := []string{"authorize", "--link", link, "--service", "vault=200", "--level", "3", "--yes", "-o", "json"}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(wrong + "\n" + right + "\n"); err != nil {
		t.Fatal(err)
	}
	stdout, stderr := s.want(0, append(vault, "--password-fd", fmt.Sprint(r.Fd()))...)
	if got := decode(t, stdout); got["level"] != 3.0 || !strings.Contains(stderr, "wrong password, 2 tries left") {
		t.Errorf("two lines: %s%s", stdout, stderr)
	}
	if err := errors.Join(w.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	s.want(74, append(vault, "--password-fd", "1000")...)
	s.want(0, append(vault, "--password-file", secretFile(t, right, 0o600))...)
	s.want(77, append(vault, "--password-file", secretFile(t, right, 0o644))...)
	s.want(77, append(vault, "--password-file", secretFile(t, "\n", 0o600))...)
	s.want(74, append(vault, "--password-file", filepath.Join(t.TempDir(), "none"))...)
	s.want(2, append(vault, "--password-file", secretFile(t, strings.Repeat("x", 1025), 0o600))...)
	s.want(2, append(vault, "--password-file", "f", "--password-fd", "3")...)
	s.want(2, "enrol", "--url", "https://127.0.0.1:1", "--password-fd", "0", "-")
	s.want(2, "enrol", "--url", "https://127.0.0.1:1", "--no-password", "--password-fd", "3", a.Invite().String())
	s.stdin = strings.NewReader("y\nyes\n" + right + "\n")
	_, stderr = s.want(0, "authorize", "--link", link, "--service", "200", "--level", "3", "--password-fd", "0")
	if !strings.Contains(stderr, "Type yes to continue") {
		t.Errorf("the user was not verified: %s", stderr)
	}
	s.stdin = strings.NewReader("y\ny\n" + right + "\n")
	s.want(77, "authorize", "--link", link, "--service", "200", "--level", "3", "--password-fd", "0")
	if acts := len(a.Acts()); acts != 3 {
		t.Errorf("%d acts", acts)
	}
}

func TestWrongPassword(t *testing.T) {
	a := clienttest.New(t)
	s, link := passwordShell(t, a), a.Listen("tcp")
	bad, good := secretFile(t, wrong, 0o600), secretFile(t, right, 0o600)
	pay := []string{"authorize", "--link", link, "--service", "200", "--level", "2", "--yes", "-o", "json", "--password-file"}
	stdout, stderr := s.want(75, append(pay, bad)...)
	got := decode(t, stdout)
	if got["result"] != "retry" || got["tries_left"] != 2.0 || got["code"] != 10.0 || !strings.Contains(stderr, "2 tries left") || !strings.Contains(stderr, "resume") {
		t.Errorf("prints %s%s", stdout, stderr)
	}
	if stdout, _ = s.want(0, "resume", "--link", link, "--password-file", good, "-o", "json"); decode(t, stdout)["result"] != "approved" {
		t.Errorf("resume prints %s", stdout)
	}
	s.want(75, append(pay, bad)...)
	if _, stderr = s.want(0, append(pay, good)...); !strings.Contains(stderr, "its password was wrong") {
		t.Errorf("left open: %s", stderr)
	}
	s.stdin = strings.NewReader(strings.Repeat(wrong+"\n", 3))
	stdout, _ = s.want(3, "authorize", "--link", link, "--service", "200", "--level", "2", "--yes", "-o", "json", "--password-fd", "0")
	if got := decode(t, stdout); got["result"] != "denied" || got["code"] != 10.0 {
		t.Errorf("three wrong ones: %s", stdout)
	}
	forty := uint64(40)
	a.Do(clienttest.Behaviour{Deny: protocol.CodeLocked, DenyRetry: &forty})
	stdout, stderr = s.want(3, append(pay, good)...)
	if got := decode(t, stdout); got["code"] != 11.0 || got["retry_s"] != 40.0 || !strings.Contains(stderr, "retry in 40s") || !strings.Contains(stderr, "unlock") {
		t.Errorf("locked: %s%s", stdout, stderr)
	}
	for _, args := range [][]string{{"status"}, {"receipts"}, {"receipts", "-o", "json"}} {
		stdout, stderr := s.want(0, args...)
		if strings.Contains(stdout+stderr, right) || strings.Contains(stdout+stderr, wrong) {
			t.Errorf("%v prints a password", args)
		}
	}
}

func TestWithoutPassword(t *testing.T) {
	a := clienttest.New(t)
	link := a.Listen("tcp")
	for _, extra := range [][]string{nil, {"--no-password"}} {
		s := shell{t: t, state: filepath.Join(t.TempDir(), "state"), stdin: strings.NewReader("")}
		_, stderr := s.want(0, append([]string{"enrol", "--url", a.Serve(), a.Invite().String()}, extra...)...)
		if strings.Contains(stderr, "without a password") == (extra != nil) {
			t.Errorf("%v: says %q", extra, stderr)
		}
		vault := []string{"authorize", "--link", link, "--service", "200", "--level", "2"}
		_, stderr = s.want(3, append(vault, "--yes")...)
		if !strings.Contains(stderr, "level not available") || !strings.Contains(stderr, "you can only refuse") || !strings.Contains(stderr, "enrol again") {
			t.Errorf("level 2: %s", stderr)
		}
		if _, stderr = s.want(3, append(vault, "--refuse")...); !strings.Contains(stderr, "refused by you") {
			t.Errorf("refused: %s", stderr)
		}
	}
	if len(a.Acts()) != 0 {
		t.Errorf("acts %v", a.Acts())
	}
}

func TestApproveAndStatus(t *testing.T) {
	a := clienttest.New(t)
	anna, ben := passwordShell(t, a), passwordShell(t, a)
	link, good := a.Listen("tcp"), secretFile(t, right, 0o600)
	with := []string{"--link", link, "--yes", "-o", "json", "--password-file", good}
	if _, stderr := ben.want(3, append([]string{"approve"}, with...)...); !strings.Contains(stderr, "no request waits for a second person") {
		t.Errorf("nothing waits: %s", stderr)
	}
	stdout, stderr := anna.want(75, append([]string{"authorize", "--service", "vault=200", "--level", "4", "--amount", "9000.00 EUR", "--text", "Boat"}, with...)...)
	got := decode(t, stdout)
	serial := got["serial"].(string)
	if got["result"] != "pending" || got["code"] != 21.0 || !strings.Contains(stderr, "countersign-client approve --link") || !strings.Contains(stderr, serial) {
		t.Errorf("prints %s%s", stdout, stderr)
	}
	anna.want(75, "status", serial, "--link", link)
	stdout, stderr = ben.want(0, append([]string{"approve"}, with...)...)
	if got := decode(t, stdout); got["result"] != "approved" || got["approves"] != 200.0 {
		t.Errorf("approve prints %s", stdout)
	}
	for _, line := range []string{"approves: service 200 (service 200) for another client\n", "amount:   9000.00 EUR\n", `the device says: "Boat"`} {
		if !strings.Contains(stderr, line) {
			t.Errorf("%q is not shown: %s", line, stderr)
		}
	}
	if stdout, _ = anna.want(0, "status", serial, "-o", "json"); decode(t, stdout)["result"] != "pending" {
		t.Errorf("as known here: %s", stdout)
	}
	stdout, stderr = anna.want(0, "status", "--last", "--link", link, "-o", "json")
	if got := decode(t, stdout); got["result"] != "approved" || got["serial"] != serial || !strings.Contains(stderr, "asks for: "+serial) {
		t.Errorf("settled: %s%s", stdout, stderr)
	}
	if _, stderr = anna.want(0, "status", serial, "--link", "unix:"+t.TempDir()+"/none"); !strings.Contains(stderr, "whether the device acted") {
		t.Errorf("asked nobody: %s", stderr)
	}
	a.Do(clienttest.Behaviour{Deny: protocol.CodeSuspended})
	anna.want(0, "status", serial, "--link", link)
	performed := true
	a.Do(clienttest.Behaviour{Performed: &performed})
	if stdout, _ = anna.want(0, "status", serial, "--link", link); !strings.Contains(stdout, "performed") {
		t.Errorf("performed: %s", stdout)
	}
	highest := a.Highest()
	if anna.want(0, "status", serial, "--link", link); a.Highest() != highest {
		t.Error("what is known was asked again")
	}
	a.Do(clienttest.Behaviour{Deny: protocol.CodeSuspended})
	anna.want(0, "status", serial, "--link", link)
	for _, args := range [][]string{
		{"status", "--link", link},
		{"status", serial, "--last"},
		{"status", "xyz"},
		{"status", serial, "--link", "nowhere"},
		{"approve", "--yes"},
		{"approve", "--link", link, "--yes", "--service", "3"},
		{"receipts", "verify", "xyz"},
	} {
		anna.want(2, args...)
	}
	anna.want(5, "status", "000000090000000000000000")
	empty := shell{t: t, state: t.TempDir(), stdin: strings.NewReader("")}
	empty.want(5, "status", "--last")
}

func TestStatusIsNotTold(t *testing.T) {
	a := clienttest.New(t)
	s, link := enrolledShell(t, a), a.Listen("tcp")
	a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if toClient && m[0] == 0x41 {
			return nil
		}
		return m
	}})
	_, stderr := s.want(75, "authorize", "--link", link, "--service", "100", "--yes")
	if !strings.Contains(stderr, "status --last --link") {
		t.Errorf("hint: %s", stderr)
	}
	a.Do(clienttest.Behaviour{Deny: protocol.CodeSuspended})
	stdout, stderr := s.want(75, "status", "--last", "--link", link, "-o", "json")
	if decode(t, stdout)["result"] != "unknown" || !strings.Contains(stderr, "does not reveal") {
		t.Errorf("prints %s%s", stdout, stderr)
	}
	a.Do(clienttest.Behaviour{})
	if stdout, _ = s.want(0, "status", "--last", "--link", link, "-o", "json"); decode(t, stdout)["result"] != "approved" {
		t.Errorf("prints %s", stdout)
	}
}

func TestDryRun(t *testing.T) {
	a := clienttest.New(t)
	s, link := enrolledShell(t, a), a.Listen("tcp")
	stdout, _ := s.want(0, "dry-run", "--link", link, "--yes", "-o", "json")
	if got := decode(t, stdout); got["result"] != "approved" || got["service"] != 0.0 || got["service_name"] != "dry run" {
		t.Errorf("prints %s", stdout)
	}
	s.want(3, "dry-run", "--link", link, "--refuse")
	if stdout, _ := s.want(0, "receipts", "-o", "json"); stdout != "[]\n" || len(a.Acts()) != 0 {
		t.Errorf("receipts %s, acts %v", stdout, a.Acts())
	}
}

func TestReceiptsVerify(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Decide: true})
	s, link := enrolledShell(t, a), a.Listen("tcp")
	s.want(5, "receipts", "verify")
	s.want(0, "authorize", "--link", link, "--service", "100", "--yes")
	s.want(5, "receipts", "verify")
	stdout, _ := s.want(0, "authorize", "--link", link, "--service", "100", "--yes", "--receipt", "-o", "json")
	serial := decode(t, stdout)["serial"].(string)
	for _, args := range [][]string{{"receipts", "verify"}, {"receipts", "verify", serial}} {
		if stdout, _ := s.want(0, args...); !strings.Contains(stdout, "verified") || strings.Contains(stdout, "unverified") {
			t.Errorf("%v prints %s", args, stdout)
		}
	}
	file := filepath.Join(s.state, "receipts", serial+".json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(b, []byte(`"decision": "`)) + 40
	b[i] = map[bool]byte{true: 'B', false: 'A'}[b[i] == 'A']
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr := s.want(4, "receipts", "verify")
	if !strings.Contains(stdout, "unverified") || !strings.Contains(stderr, "do not rely on this receipt") {
		t.Errorf("prints %s%s", stdout, stderr)
	}
}

func TestWordsOfTheDevice(t *testing.T) {
	for words, want := range map[string]string{
		"Main entrance": `"Main entrance"`, `x" (00000000)`: `"x\" (00000000)"`, "שער": "\u2068\"שער\"\u2069",
	} {
		got := describe(client.Shown{ServiceName: "s", DeviceName: words, Text: words})
		for _, line := range []string{"device:   " + want + " (00000000)\n", "the device says: " + want + "\n"} {
			if !strings.Contains(got, line) {
				t.Errorf("%q is not in %q", line, got)
			}
		}
	}
}

// terminal returns the two ends of a pseudo terminal.
func terminal(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = keyboard.Close(), tty.Close() })
	return keyboard, tty
}

// typing answers each prompt on standard error with the next line.
type typing struct {
	keyboard io.Writer
	lines    []string

	mu    sync.Mutex // guards said: an abandoned prompt ends its line later
	said  bytes.Buffer
	ended chan struct{} // receives when a prompt has ended; nil: not needed
}

func (w *typing) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.String()
}

func (w *typing) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if bytes.HasSuffix(p, []byte(": ")) && len(w.lines) != 0 {
		fmt.Fprintln(w.keyboard, w.lines[0])
		w.lines = w.lines[1:]
	}
	if w.ended != nil && string(p) == "\n" {
		w.ended <- struct{}{}
	}
	return w.said.Write(p)
}

func TestPrompts(t *testing.T) {
	a := clienttest.New(t)
	url, link, state := a.Serve(), a.Listen("tcp"), filepath.Join(t.TempDir(), "state")
	for _, tc := range []struct {
		types []string
		args  []string
		exit  int
		says  string
	}{
		{[]string{right, wrong}, []string{"enrol", "--url", url, a.Invite().String()}, 77, "passwords differ"},
		{[]string{right, right}, []string{"enrol", "--url", url, a.Invite().String()}, 0, "repeat it: "},
		{[]string{wrong, right}, []string{"authorize", "--link", link, "--service", "100", "--level", "2", "--yes"}, 0, "wrong password, 2 tries left"},
	} {
		keyboard, tty := terminal(t)
		stderr := &typing{keyboard: keyboard, lines: tc.types}
		var stdout bytes.Buffer
		if got := run(append([]string{"--state", state}, tc.args...), tty, &stdout, stderr); got != tc.exit || !strings.Contains(stderr.String(), tc.says) {
			t.Errorf("%v: exit code %d, want %d\n%s%s", tc.args, got, tc.exit, stdout.String(), stderr.String())
		}
	}
}

// TestPromptEnds: the ttl ends without input, and the terminal echoes again.
func TestPromptEnds(t *testing.T) {
	a := clienttest.New(t)
	s, link := passwordShell(t, a), a.Listen("tcp")
	a.Do(clienttest.Behaviour{P2: message.P2{TTL: 1}})
	keyboard, tty := terminal(t)
	var stdout bytes.Buffer
	stderr, begun := &typing{ended: make(chan struct{}, 1)}, time.Now()
	if got := run([]string{"--state", s.state, "authorize", "--link", link, "--service", "100", "--level", "2", "--yes"}, tty, &stdout, stderr); got != 75 {
		t.Errorf("exit code %d: %s", got, stderr)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || state.Lflag&unix.ECHO == 0 {
		t.Errorf("no echo: %+v, %v", state, err)
	}
	fmt.Fprintln(keyboard)
	<-stderr.ended
}
