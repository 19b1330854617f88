package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"countersign/internal/fault"
)

func TestConfirm(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want bool
		code fault.Code
	}{
		{"y\n", true, fault.OK},
		{"YES\r\n", true, fault.OK},
		{" yes \n", true, fault.OK},
		{"n\n", false, fault.OK},
		{"\n", false, fault.OK},
		{"yesterday\n", false, fault.OK},
		{"", false, fault.Usage},
		{"y", false, fault.Usage}, // cut off: not an answer
		{strings.Repeat("y", maxAnswer+1), false, fault.Usage},
	} {
		var errs bytes.Buffer
		got, err := Terminal{Ctx: context.Background(), In: strings.NewReader(tc.in), Err: &errs}.Confirm("Go\x1b on?")
		if code, _ := codeOf(err); got != tc.want || code != tc.code {
			t.Errorf("%.10q: %t, exit code %d; want %t, %d", tc.in, got, code, tc.want, tc.code)
		}
		if !strings.HasPrefix(errs.String(), `Go\u001b on? [y/N] `) {
			t.Errorf("asked %q", errs.String())
		}
	}
	broken := Terminal{Ctx: context.Background(), In: io.NewSectionReader(failingReader{}, 0, 10), Err: io.Discard}
	if ok, err := broken.Confirm("Go on?"); ok || err == nil {
		t.Errorf("broken input: %t, %v", ok, err)
	} else if code, _ := codeOf(err); code != fault.IO {
		t.Errorf("broken input: exit code %d", code)
	}
}

type failingReader struct{}

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }

func TestConfirmNameLeavesTheRest(t *testing.T) {
	in := strings.NewReader("anna\nAnna\nan\n\n")
	terminal := Terminal{Ctx: context.Background(), In: in, Err: io.Discard}
	for i, want := range []bool{true, false, false} {
		if got, err := terminal.ConfirmName("Revoke.", "anna"); err != nil || got != want {
			t.Errorf("answer %d: %t, %v; want %t", i+1, got, err, want)
		}
	}
	if got, err := terminal.ConfirmName("Revoke.", ""); err != nil || got {
		t.Errorf("an empty name: %t, %v", got, err)
	}
	if in.Len() != 0 {
		t.Errorf("%d bytes left", in.Len())
	}
}

// openTerminal returns both ends of a pseudo-terminal.
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return user, program
}

func TestSecretOnATerminal(t *testing.T) {
	user, program := openTerminal(t)
	if !term.IsTerminal(int(program.Fd())) {
		t.Fatal("no terminal")
	}
	for _, tc := range []struct {
		typed, want string
		code        fault.Code
	}{
		{"1234\n", "1234", fault.OK},
		{"\n", "", fault.Auth},
	} {
		if _, err := user.WriteString(tc.typed); err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		got, err := Terminal{Ctx: context.Background(), In: program, Err: &errs}.Secret("PIN: ")
		if code, _ := codeOf(err); string(got) != tc.want || code != tc.code {
			t.Errorf("%q: %q, exit code %d", tc.typed, got, code)
		}
		if errs.String() != "PIN: \n" {
			t.Errorf("asked %q", errs.String())
		}
	}
}

// TestInterrupted: a question ends with its context, and leaves the terminal as it was.
func TestInterrupted(t *testing.T) {
	user, program := openTerminal(t)
	before, err := term.GetState(int(program.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		ask  func(Terminal) error
		hide bool
	}{
		{"Secret", func(t Terminal) error { _, err := t.Secret("PIN: "); return err }, true},
		{"Confirm", func(t Terminal) error { _, err := t.Confirm("Sure?"); return err }, false},
		{"ConfirmName", func(t Terminal) error { _, err := t.ConfirmName("Sure?", "x"); return err }, false},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- tc.ask(Terminal{Ctx: ctx, In: program, Err: io.Discard}) }()
		for state := before; tc.hide && *state == *before; { // until it echoes no more
			if state, err = term.GetState(int(program.Fd())); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", tc.name, err)
		}
		after, err := term.GetState(int(program.Fd()))
		if err != nil || *after != *before {
			t.Errorf("%s left the terminal in another state: %v", tc.name, err)
		}
		if _, err := user.WriteString("\n"); err != nil { // ends the read, so that the next has the terminal
			t.Fatal(err)
		}
	}
}

// TestSecretWithoutTerminal runs itself again in a new session, which has no controlling
// terminal.
func TestSecretWithoutTerminal(t *testing.T) {
	const inside = "CLI_TEST_WITHOUT_TERMINAL"
	if os.Getenv(inside) == "" {
		again := exec.Command(os.Args[0], "-test.run=^TestSecretWithoutTerminal$", "-test.v")
		again.Env = append(os.Environ(), inside+"=1")
		again.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if out, err := again.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestSecretWithoutTerminal")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	secret, err := Terminal{Ctx: context.Background(), In: strings.NewReader("1234\n"), Err: io.Discard}.Secret("PIN: ")
	code, hint := codeOf(err)
	if len(secret) != 0 || code != fault.Auth || !strings.Contains(hint, "run it in a terminal") {
		t.Errorf("%q from a pipe; exit code %d, hint %q", secret, code, hint)
	}
}

func TestColour(t *testing.T) {
	_, program := openTerminal(t)
	env := func(name, value string) func(string) string {
		return func(asked string) string {
			if asked == name {
				return value
			}
			return ""
		}
	}
	for _, tc := range []struct {
		name   string
		w      io.Writer
		getenv func(string) string
		want   bool
	}{
		{"terminal", program, env("", ""), true},
		{"NO_COLOR", program, env("NO_COLOR", "0"), false},
		{"dumb", program, env("TERM", "dumb"), false},
		{"no environment", program, nil, false},
		{"pipe", &bytes.Buffer{}, env("", ""), false},
	} {
		if got := colored(tc.w, tc.getenv); got != tc.want {
			t.Errorf("%s: %t, want %t", tc.name, got, tc.want)
		}
	}
}
