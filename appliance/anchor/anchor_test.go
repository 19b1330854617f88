package anchor_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"countersign/appliance/anchor"
	"countersign/appliance/store"
	"countersign/protocol"
)

func newKey(t *testing.T) protocol.PublicKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := private.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	key, err := protocol.CompressPoint(public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// reads checks that the file holds want.
func reads(t *testing.T, path string, want anchor.Anchor) {
	t.Helper()
	got, err := anchor.Read(path)
	if err != nil || got != want {
		t.Errorf("the file says %+v, %v; want %+v", got, err, want)
	}
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	if _, err := anchor.Read(path); !errors.Is(err, anchor.ErrNone) {
		t.Errorf("reading none: %v", err)
	}
	if _, err := anchor.Create(path, anchor.Anchor{}); err == nil {
		t.Error("an anchor of no root was made")
	}
	want := anchor.Anchor{Root: 3, Key: newKey(t), CertHash: [32]byte{1, 31: 2}, Revision: 7, MAC: 2}
	f, err := anchor.Create(path, want)
	if err != nil {
		t.Fatal(err)
	}
	if f.Current() != want {
		t.Errorf("made %+v", f.Current())
	}
	reads(t, path, want)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := anchor.Create(path, want); !errors.Is(err, anchor.ErrThere) {
		t.Errorf("made again: %v", err)
	}
}

// TestForward checks that values only go forward, in memory and in the file.
func TestForward(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	f, err := anchor.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Advance(store.Mark{Revision: 1, MAC: 1}); !errors.Is(err, anchor.ErrNone) {
		t.Errorf("advancing none: %v", err)
	}
	first, second := newKey(t), newKey(t)
	hash := [32]byte{1}
	for _, c := range []struct {
		name string
		do   func() error
		err  error
	}{
		{"root 0", func() error { return f.Root(0, protocol.PublicKey{}, hash) }, errAny},
		{"no point", func() error { return f.Root(2, protocol.PublicKey{1}, hash) }, errAny},
		{"root 2", func() error { return f.Root(2, first, hash) }, nil},
		{"root 2 again", func() error { return f.Root(2, first, hash) }, nil},
		{"another key", func() error { return f.Root(2, second, hash) }, anchor.ErrOther},
		{"another certificate", func() error { return f.Root(2, first, [32]byte{2}) }, anchor.ErrOther},
		{"root 1", func() error { return f.Root(1, second, hash) }, anchor.ErrBack},
		{"revision", func() error { return f.Advance(store.Mark{Revision: 5, MAC: 1}) }, nil},
		{"revision back", func() error { return f.Advance(store.Mark{Revision: 4, MAC: 1}) }, anchor.ErrBack},
		{"mac", func() error { return f.Advance(store.Mark{Revision: 5, MAC: 3}) }, nil},
		{"mac back", func() error { return f.Advance(store.Mark{Revision: 6, MAC: 2}) }, anchor.ErrBack},
		{"root 4", func() error { return f.Root(4, second, hash) }, nil},
	} {
		before, _ := anchor.Read(path)
		err := c.do()
		if c.err == nil && err != nil || c.err != nil && err == nil || c.err != errAny && !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
		if after, _ := anchor.Read(path); c.err != nil && after != before {
			t.Errorf("%s changed the file", c.name)
		}
	}
	reads(t, path, anchor.Anchor{Root: 4, Key: second, CertHash: hash, Revision: 5, MAC: 3})
	again, err := anchor.Open(path)
	if err != nil || again.Current() != f.Current() {
		t.Errorf("opened again: %+v, %v", again.Current(), err)
	}
}

var errAny = errors.New("any error")

// TestNothingToWrite checks that an unchanged value is not written again.
func TestNothingToWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	a := anchor.Anchor{Root: 1, Key: newKey(t), Revision: 2, MAC: 1}
	f, err := anchor.Create(path, a)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Advance(store.Mark{Revision: 2, MAC: 1}), f.Root(1, a.Key, a.CertHash)); err != nil {
		t.Error(err)
	}
	if _, err := anchor.Read(path); !errors.Is(err, anchor.ErrNone) {
		t.Errorf("it was written: %v", err)
	}
}

// TestWriteFails checks that a value that could not be written is kept, and written by the next
// call.
func TestWriteFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "anchor")
	f, err := anchor.Create(path, anchor.Anchor{Root: 1, Key: newKey(t), Revision: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Advance(store.Mark{Revision: 3, MAC: 0}); err == nil {
			t.Error("written into no directory")
		}
	}
	if err := f.Advance(store.Mark{Revision: 2, MAC: 0}); !errors.Is(err, anchor.ErrBack) {
		t.Errorf("going back: %v", err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if err := f.Advance(store.Mark{Revision: 3, MAC: 0}); err != nil {
		t.Error(err)
	}
	reads(t, path, f.Current())
}

// TestDamaged checks that every file that this package did not write is refused.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	a := anchor.Anchor{Root: 12, Key: newKey(t), CertHash: [32]byte{0xab}, Revision: 7, MAC: 2}
	if _, err := anchor.Create(path, a); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	replaced := func(old, next string) string {
		text := strings.Replace(string(good), old, next, 1)
		if text == string(good) {
			t.Fatalf("no %q in %s", old, good)
		}
		return text
	}
	for name, text := range map[string]string{
		"empty":              "",
		"cut off":            string(good[:len(good)-1]),
		"cut in a line":      string(good[:len(good)-8]),
		"only comments":      "# one\n# two",
		"line more":          string(good) + "\n",
		"unknown":            string(good) + "colour red\n",
		"twice":              string(good) + "mac 2\n",
		"missing":            replaced("revision 7\n", ""),
		"order":              replaced("revision 7\nmac 2\n", "mac 2\nrevision 7\n"),
		"comment in between": replaced("revision", "# no\nrevision"),
		"root 0":             replaced("root 12", "root 0"),
		"leading zero":       replaced("root 12", "root 012"),
		"sign":               replaced("root 12", "root +12"),
		"space":              replaced("root 12", "root  12"),
		"carriage return":    replaced("root 12\n", "root 12\r\n"),
		"too big":            replaced("mac 2", "mac 18446744073709551616"),
		"upper case":         replaced("cert ab", "cert AB"),
		"short":              replaced("cert ab", "cert "),
		"no point":           replaced(a.Key.String(), strings.Repeat("00", 33)),
		"long":               strings.Repeat("# \n", 2000) + string(good),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := anchor.Read(path); !errors.Is(err, anchor.ErrDamaged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if _, err := anchor.Open(path); !errors.Is(err, anchor.ErrDamaged) {
			t.Errorf("%s: opened: %v", name, err)
		}
	}
	if err := os.WriteFile(path, []byte(replaced("# The", "# Another version of the comment\n# The")), 0o600); err != nil {
		t.Fatal(err)
	}
	reads(t, path, a)
}

// TestConcurrent: calls at once leave the greatest of each value.
func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	key := newKey(t)
	f, err := anchor.Create(path, anchor.Anchor{Root: 1, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range uint64(8) {
		group.Go(func() {
			if err := f.Advance(store.Mark{Revision: i, MAC: 0}); err != nil && !errors.Is(err, anchor.ErrBack) {
				t.Error(err)
			}
			if err := f.Root(i+1, key, [32]byte{}); err != nil && !errors.Is(err, anchor.ErrBack) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	reads(t, path, anchor.Anchor{Root: 8, Key: key, Revision: 7})
}

const childPath = "ANCHOR_TEST_CHILD"

// TestMain is also the child of TestKill: it advances until it is killed, and says each
// revision once it is durable.
func TestMain(m *testing.M) {
	path := os.Getenv(childPath)
	if path == "" {
		os.Exit(m.Run())
	}
	f, err := anchor.Open(path)
	for err == nil {
		next := f.Current().Revision + 1
		if err = f.Advance(store.Mark{Revision: next, MAC: 1}); err == nil {
			fmt.Println(next)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKill checks that a kill at any moment leaves a complete anchor, no older than the last
// acknowledged one.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	a := anchor.Anchor{Root: 1, Key: newKey(t), MAC: 1}
	if _, err := anchor.Create(path, a); err != nil {
		t.Fatal(err)
	}
	for round := range 20 {
		acknowledged := a.Revision
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childPath+"="+path)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, err := fmt.Sscan(lines.Text(), &acknowledged); err != nil {
				t.Fatal(err)
			}
			if acknowledged >= a.Revision+uint64(round) {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait() // it was killed
		got, err := anchor.Read(path)
		if err != nil || got.Revision < acknowledged || got.Revision > acknowledged+1 {
			t.Fatalf("after revision %d was acknowledged: %+v, %v", acknowledged, got, err)
		}
		a.Revision = got.Revision
		reads(t, path, a)
	}
}
