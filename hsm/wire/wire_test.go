package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/memory"
)

func TestConfigRoundTrip(t *testing.T) {
	want := Config{Module: "/m.so", TokenLabel: "label", TokenSerial: "07", PIN: PIN("1234"), Sessions: 4}
	var buf bytes.Buffer
	if err := WriteConfig(&buf, want); err != nil {
		t.Fatal(err)
	}
	frame := bytes.Clone(buf.Bytes())
	got, err := ReadConfig(&buf)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"cut":      frame[:len(frame)-1],
		"version":  bytes.Replace(frame, []byte{1}, []byte{2}, 1),
		"trailing": append([]byte{0, 0, 0, frame[3] + 1}, append(bytes.Clone(frame[4:]), 0)...),
		"huge":     {0xff, 0xff, 0xff, 0xff},
	} {
		if _, err := ReadConfig(bytes.NewReader(bad)); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v, want ErrFrame", name, err)
		}
	}
}

func TestPINIsHidden(t *testing.T) {
	c := Config{PIN: PIN("canary")}
	for _, text := range []string{fmt.Sprint(c.PIN), fmt.Sprintf("%v %+v %#v", c, c, c), fmt.Sprintf("%s %q %x %d", c.PIN, c.PIN, c.PIN, c.PIN)} {
		if strings.Contains(text, "canary") || strings.Contains(text, "63616e") || strings.Contains(text, "99 97") || !strings.Contains(text, "[redacted]") {
			t.Errorf("%s", text)
		}
	}
	if c.PIN.Zero(); string(c.PIN) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("zeroed PIN is %x", []byte(c.PIN))
	}
}

func TestHello(t *testing.T) {
	var buf bytes.Buffer
	want := Hello{Notices: []string{"no wrapping"}}
	if err := WriteHello(&buf, want, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadHello(&buf); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, sentinel := range []error{hsm.ErrPIN, hsm.ErrUnavailable} {
		if err := WriteHello(&buf, Hello{}, fmt.Errorf("login: %w", sentinel)); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadHello(&buf); !errors.Is(err, sentinel) || err.Error() != "login: "+sentinel.Error() {
			t.Errorf("%v, want %v", err, sentinel)
		}
	}
	if _, err := ReadHello(&buf); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("no hello: %v, want ErrUnavailable", err)
	}
}

// mortal is a memory token that can die.
type mortal struct {
	*memory.Token
	dead chan struct{}
	once sync.Once
}

func (m *mortal) Dead() <-chan struct{} { return m.dead }

// MAC dies of the text "die".
func (m *mortal) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if string(data) == "die" {
		m.once.Do(func() { close(m.dead) })
		return nil, fmt.Errorf("device removed: %w", hsm.ErrUnavailable)
	}
	return m.Token.MAC(ctx, key, data)
}

// dial serves a token and returns the other end and how serving ended.
func dial(t *testing.T) (net.Conn, *mortal, <-chan error) {
	t.Helper()
	ours, theirs := net.Pipe()
	token, ended := &mortal{Token: memory.New(), dead: make(chan struct{})}, make(chan error, 1)
	go func() {
		ended <- Serve(theirs, token, 2)
		_ = theirs.Close()
	}()
	t.Cleanup(func() { _ = ours.Close() })
	return ours, token, ended
}

func ask(t *testing.T, conn net.Conn, q Request) Response {
	t.Helper()
	if q.Deadline == 0 {
		q.Deadline = Now() + int64(time.Second)
	}
	if _, err := conn.Write(q.Append(nil)); err != nil {
		t.Fatal(err)
	}
	p, _, err := ReadResponse(conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.ID != q.ID {
		t.Fatalf("answer to %d, asked %d", p.ID, q.ID)
	}
	return p
}

func TestServe(t *testing.T) {
	conn, token, ended := dial(t)
	p := ask(t, conn, Request{ID: 1, Op: Generate, Payload: AppendSpec(nil, hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey})})
	keys, err := ParseKeys(p.Payload)
	if err != nil || len(keys) != 1 || keys[0].Label != "mac@1" {
		t.Fatalf("%v, %v", keys, err)
	}
	want, err := token.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p = ask(t, conn, Request{ID: 2, Op: Keys}); p.Err != nil {
		t.Fatal(p.Err)
	}
	if got, err := ParseKeys(p.Payload); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("keys %v, %v; want %v", got, err, want)
	}
	if p = ask(t, conn, Request{ID: 3, Op: MAC, Key: keys[0].ID, Payload: []byte("x")}); len(p.Payload) != 32 || p.Err != nil {
		t.Errorf("MAC %x, %v", p.Payload, p.Err)
	}
	for q, want := range map[*Request]error{
		{Op: Sign, Payload: make([]byte, 20)}:                hsm.ErrInput,
		{Op: Sign, Payload: make([]byte, 32)}:                hsm.ErrKey,
		{Op: Derive, Payload: make([]byte, 65)}:              hsm.ErrInput,
		{Op: Generate}:                                       hsm.ErrInput,
		{Op: Generate, Payload: []byte("\x03mac@1")}:         hsm.ErrExists,
		{Op: MAC, Key: keys[0].ID, Deadline: Now() - 1}:      hsm.ErrUnavailable,
		{Op: MAC, Key: keys[0].ID, Deadline: -1, ID: 1 << 9}: hsm.ErrUnavailable,
	} {
		if p = ask(t, conn, *q); !errors.Is(p.Err, want) {
			t.Errorf("%+v: %v, want %v", q, p.Err, want)
		}
	}
	_ = conn.Close()
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeLostToken(t *testing.T) {
	conn, _, ended := dial(t)
	p := ask(t, conn, Request{ID: 1, Op: MAC, Payload: []byte("die")})
	if !errors.Is(p.Err, ErrLost) || !errors.Is(p.Err, hsm.ErrUnavailable) || !strings.Contains(p.Err.Error(), "device removed") {
		t.Errorf("%v, want ErrLost", p.Err)
	}
	if err := <-ended; !errors.Is(err, ErrLost) {
		t.Errorf("Serve: %v, want ErrLost", err)
	}
}

func TestServeMalformed(t *testing.T) {
	for name, bad := range map[string][]byte{
		"too long": {0, 2, 0, 0},
		"short":    {0, 0, 0, 1, 0},
		"op":       append([]byte{0, 0, 0, 33, 0, 0, 0, 1, 99}, make([]byte, 28)...),
	} {
		conn, _, ended := dial(t)
		if _, err := conn.Write(bad); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v, want ErrFrame", name, err)
		}
	}
}

func TestParseKeysRefuses(t *testing.T) {
	good := appendKey(nil, hsm.Key{Label: "l", Public: make([]byte, 65)})
	for name, bad := range map[string][]byte{
		"cut": good[:len(good)-1], "trailing": append(bytes.Clone(good), 1),
		"point": appendKey(nil, hsm.Key{Label: "l", Public: make([]byte, 64)}),
	} {
		if keys, err := ParseKeys(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v, %v, want ErrFrame", name, keys, err)
		}
	}
}

// slowWriter counts writes and blocks the first until released.
type slowWriter struct {
	release chan struct{}
	entered chan struct{}
	writes  int
	bytes   bytes.Buffer
}

func (w *slowWriter) Write(b []byte) (int, error) {
	w.writes++
	if w.writes == 1 {
		close(w.entered)
		<-w.release
	}
	return w.bytes.Write(b)
}

func TestWriterCoalesces(t *testing.T) {
	slow := &slowWriter{release: make(chan struct{}), entered: make(chan struct{})}
	w, first := NewWriter(slow), make(chan error)
	go func() { first <- w.Frame([]byte("a")) }()
	<-slow.entered
	for range 100 {
		if err := w.Frame([]byte("b")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Frame(make([]byte, maxPending)); !errors.Is(err, errFull) {
		t.Errorf("too much: %v, want errFull", err)
	}
	close(slow.release)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if got := slow.bytes.String(); slow.writes != 2 || got != "a"+strings.Repeat("b", 100) {
		t.Errorf("%d writes of %q", slow.writes, got)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(Request{ID: 7, Op: Sign, Deadline: 9, Key: hsm.KeyID{1}, Payload: []byte("p")}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		q, _, err := readRequest(r, nil)
		if err == nil && !bytes.Equal(q.Append(nil), b[:len(b)-r.Len()]) {
			t.Errorf("%x is %+v", b, q)
		}
	})
}

func FuzzResponse(f *testing.F) {
	f.Add(Response{ID: 7, Took: time.Millisecond, Payload: []byte("p")}.append(nil))
	f.Add(Response{ID: 7, Err: hsm.ErrKey}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, _, err := ReadResponse(bytes.NewReader(b), nil)
		if err == nil && p.Err == nil {
			if _, err := ParseKeys(p.Payload); err != nil && !errors.Is(err, ErrFrame) {
				t.Errorf("%v", err)
			}
		}
	})
}
