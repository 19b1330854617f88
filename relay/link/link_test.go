package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
)

func open(t *testing.T, addr string) *Listener {
	t.Helper()
	l, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// pair returns both ends of a link over l.
func pair(t *testing.T, l *Listener) (near, far *Conn) {
	t.Helper()
	near, err := Dial(t.Context(), l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	return near, far
}

func TestMessagesPass(t *testing.T) {
	for _, addr := range []string{"tcp:127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "link")} {
		near, far := pair(t, open(t, addr))
		for _, size := range []int{1, 82, 255, 256, message.MaxFrame} {
			want := bytes.Repeat([]byte{0x5A}, size)
			if err := near.Send(want); err != nil {
				t.Fatalf("%s: sending %d bytes: %v", addr, size, err)
			}
			got, err := far.Receive()
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: received %d bytes, %v; want %d", addr, len(got), err, size)
			}
		}
		if err := near.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Receive(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: after the end: %v, want EOF", addr, err)
		}
	}
}

func TestFrameLengths(t *testing.T) {
	l := open(t, "tcp:127.0.0.1:0")
	for name, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"one too many":      {[]byte{8, 1}, protocol.CodeFormat},
		"largest length":    {[]byte{0xFF, 0xFF}, protocol.CodeFormat},
		"cut within":        {[]byte{0, 4, 1, 2}, io.ErrUnexpectedEOF},
		"cut in the length": {[]byte{0}, io.ErrUnexpectedEOF},
	} {
		raw, err := net.Dial("tcp", strings.TrimPrefix(l.Addr(), "tcp:"))
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Write(c.raw); err != nil {
			t.Fatal(err)
		}
		_ = raw.Close()
		if _, err := far.Receive(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		_ = far.Close()
	}
	near, _ := pair(t, l)
	if err := near.Send(make([]byte, message.MaxFrame+1)); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("sending too much: %v, want %v", err, protocol.CodeFormat)
	}
}

func TestTimeouts(t *testing.T) {
	near, far := pair(t, open(t, "unix:"+filepath.Join(t.TempDir(), "link")))
	far.SetTimeouts(Timeouts{Receive: time.Millisecond, Send: time.Millisecond})
	if _, err := far.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing comes: %v, want a timeout", err)
	}
	var err error
	for err == nil { // until the buffers of the kernel are full
		err = far.Send(make([]byte, message.MaxFrame))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("peer does not read: %v, want a timeout", err)
	}
	_ = near.Close()
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{"", "tcp", "tcp:", "unix:", "udp:127.0.0.1:1", "127.0.0.1:80"} {
		if _, err := Listen(bad); err == nil {
			t.Errorf("listened on %q", bad)
		}
		if _, err := Dial(t.Context(), bad); err == nil {
			t.Errorf("dialled %q", bad)
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(canceled, "tcp:127.0.0.1:9"); !errors.Is(err, context.Canceled) {
		t.Errorf("dialled with a cancelled context: %v", err)
	}
}

func TestSocketFileLeftBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "link")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	live := open(t, "unix:"+path)
	if _, err := Listen(live.Addr()); err == nil {
		t.Error("two listen on one socket file")
	}
	if err := live.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); err == nil {
		t.Error("listened in place of a file")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "data" {
		t.Errorf("the file has %q, %v afterwards", got, err)
	}
}
