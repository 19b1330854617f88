package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"countersign/internal/secret"
)

func TestSecretReferences(t *testing.T) {
	for _, tc := range []struct{ name, pin, want string }{
		{"a secret itself", `"geheim42"`, "a secret is never written here, only where it is"},
		{"a number", `424242`, "a secret is never written here, only where it is"},
		{"empty", `{}`, `source "": want one of file, credential, fd, prompt`},
		{"environment", `{ source = "env", name = "PIN" }`, `source "env": want one of file, credential, fd, prompt`},
		{"file without path", `{ source = "file" }`, `source "file" needs path`},
		{"file with fd", `{ source = "file", path = "x", fd = 3 }`, `fd does not belong to source "file"`},
		{"credential without name", `{ source = "credential" }`, `source "credential" needs name`},
		{"credential with a path", `{ source = "credential", name = "../pin" }`, `name "../pin": want the name of a credential`},
		{"credential above", `{ source = "credential", name = ".." }`, `name "..": want the name of a credential`},
		{"prompt with a path", `{ source = "prompt", path = "x" }`, `path does not belong to source "prompt"`},
		{"fd missing", `{ source = "fd" }`, `source "fd" needs fd`},
		{"fd negative", `{ source = "fd", fd = -1 }`, "fd: want the number of a file descriptor"},
		{"fd as a string", `{ source = "fd", fd = "3" }`, "fd: want the number of a file descriptor"},
		{"path as a number", `{ source = "file", path = 3 }`, "path: want a string"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := failure(t, "[hsm]\npin = "+tc.pin+"\n")
			if !strings.HasPrefix(got, "config.toml:2: hsm.pin: "+tc.want) {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if strings.Contains(got, "geheim42") || strings.Contains(got, "424242") {
				t.Errorf("the secret is repeated: %s", got)
			}
		})
	}
}

// pinFile creates a file with exactly this mode, regardless of the umask.
func pinFile(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func refused(t *testing.T, s Secret, from SecretSources) *SecretError {
	t.Helper()
	v, err := s.Resolve(from)
	var e *SecretError
	if !errors.As(err, &e) || len(v) != 0 {
		t.Fatalf("%s: %d bytes, error %v; want a *SecretError", s, len(v), err)
	}
	if e.ExitCode() != 77 {
		t.Errorf("exit code %d", e.ExitCode())
	}
	return e
}

func TestSecretFromFile(t *testing.T) {
	for _, tc := range []struct{ content, want string }{
		{"1234", "1234"},
		{"1234\n", "1234"},
		{"1234\r\n", "1234"},
		{" 12 34 \n", " 12 34 "},
		{"\xef\xbb\xbf1234\r\n", "1234"},
		{strings.Repeat("x", 4096) + "\r\n", strings.Repeat("x", 4096)},
	} {
		v, err := Secret{Source: "file", Path: pinFile(t, tc.content, 0o400)}.Resolve(SecretSources{})
		if err != nil || string(v) != tc.want {
			t.Errorf("%.10q: %.10q, %v", tc.content, []byte(v), err)
		}
	}
	for _, tc := range []struct{ content, want string }{
		{"", "it is empty"},
		{"\n", "it is empty"},
		{"1234\n\n", "it has more than one line"},
		{"1234\n5678", "it has more than one line"},
		{"12\x0034", "or a NUL"},
		{"\xff\xfe1\x002\x003\x004\x00", "it is UTF-16"},
		{strings.Repeat("x", 4097), "it is longer than 4096 bytes"},
		{strings.Repeat("x", 1<<20), "it is longer than 4096 bytes"},
	} {
		e := refused(t, Secret{Source: "file", Path: pinFile(t, tc.content, 0o600)}, SecretSources{})
		if !strings.Contains(e.Error(), tc.want) {
			t.Errorf("%.10q: %v, want %s", tc.content, e, tc.want)
		}
		if strings.Contains(e.Error(), "1234") {
			t.Errorf("the secret is repeated: %v", e)
		}
	}
}

func TestSecretFileMode(t *testing.T) {
	path := pinFile(t, "1234", 0o606)
	e := refused(t, Secret{Source: "file", Path: path}, SecretSources{})
	if os.Geteuid() == 0 {
		path = pinFile(t, "1234", 0o660)
		e = refused(t, Secret{Source: "file", Path: path}, SecretSources{})
	}
	if !strings.HasPrefix(e.Error(), "reading secret from file "+path+": mode 06") || e.Hint() != "run: chmod 600 "+path {
		t.Errorf("%v; hint %s", e, e.Hint())
	}
}

func TestSecretFileOfAnotherKind(t *testing.T) {
	dir := t.TempDir()
	e := refused(t, Secret{Source: "file", Path: filepath.Join(dir, "none")}, SecretSources{})
	if !errors.Is(e, os.ErrNotExist) || e.Hint() == "" {
		t.Errorf("missing: %v, hint %q", e, e.Hint())
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if e := refused(t, Secret{Source: "file", Path: dir}, SecretSources{}); !strings.Contains(e.Error(), "not a regular file") {
		t.Errorf("directory: %v", e)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if e := refused(t, Secret{Source: "file", Path: fifo}, SecretSources{}); !strings.Contains(e.Error(), "not a regular file") {
		t.Errorf("FIFO: %v", e)
	}
}

func TestSecretFromCredential(t *testing.T) {
	path := pinFile(t, "1234\n", 0o440) // as an ACL of systemd shows
	s := Secret{Source: "credential", Name: "pin"}
	v, err := s.Resolve(SecretSources{CredentialsDir: filepath.Dir(path)})
	if err != nil || string(v) != "1234" {
		t.Errorf("%q, %v", []byte(v), err)
	}
	if e := refused(t, s, SecretSources{}); !strings.Contains(e.Error(), "CREDENTIALS_DIRECTORY is not set") {
		t.Errorf("no directory: %v", e)
	}
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	refused(t, s, SecretSources{CredentialsDir: filepath.Dir(path)})
	refused(t, Secret{Source: "credential", Name: "../pin"}, SecretSources{CredentialsDir: filepath.Dir(path)})
}

func TestSecretFromDescriptorOnce(t *testing.T) {
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], 0); err != nil { // as one that was passed on
		t.Fatal(err)
	}
	if _, err := syscall.Write(pipe[1], []byte("1234\n")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Close(pipe[1]); err != nil {
		t.Fatal(err)
	}
	s := Secret{Source: "fd", FD: &pipe[0]}
	v, err := s.Resolve(SecretSources{})
	if err != nil || string(v) != "1234" {
		t.Fatalf("%q, %v", []byte(v), err)
	}
	own, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	fd := int(own.Fd())
	refused(t, Secret{Source: "fd", FD: &fd}, SecretSources{})
	free := 1 << 19 // above every limit on descriptors in use here
	refused(t, Secret{Source: "fd", FD: &free}, SecretSources{})
}

func TestSecretFromPrompt(t *testing.T) {
	s := Secret{Source: "prompt"}
	ask := func(answer string, err error) SecretSources {
		return SecretSources{What: "PIN of token x", Prompt: func(question string) ([]byte, error) {
			if question != "PIN of token x: " {
				t.Errorf("asked %q", question)
			}
			return []byte(answer), err
		}}
	}
	if v, err := s.Resolve(ask("1234", nil)); err != nil || string(v) != "1234" {
		t.Errorf("%q, %v", []byte(v), err)
	}
	refused(t, s, ask("", nil))
	refused(t, s, ask("", errors.New("interrupted")))
	refused(t, s, SecretSources{})
	refused(t, Secret{}, SecretSources{})
}

func TestSecretValueIsNeverShown(t *testing.T) {
	v := secret.Bytes([]byte("geheim42"))
	type around struct{ Pin secret.Bytes }
	marshalled, err := json.Marshal(around{v})
	if err != nil {
		t.Fatal(err)
	}
	shown := string(marshalled)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		shown += fmt.Sprintf(verb, v) + fmt.Sprintf(verb, around{v}) + fmt.Sprintf(verb, &around{v})
	}
	for _, leak := range []string{"geheim", "67656865", "103 101"} {
		if strings.Contains(shown, leak) {
			t.Errorf("%s shows in %s", leak, shown)
		}
	}
	v.Zero()
	if string(v) != "\x00\x00\x00\x00\x00\x00\x00\x00" {
		t.Errorf("after Zero: %q", []byte(v))
	}
}
