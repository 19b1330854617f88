package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/hsm"
	"countersign/hsm/memory"
)

func TestConfigRoundTrip(t *testing.T) {
	want := Config{
		Module: "/m.so", TokenLabel: "label", TokenSerial: "07", PIN: PIN("1234"), Sessions: 4,
		InitArgs: "configdir='sql:/d'", Require: []hsm.Usage{hsm.SignP256, hsm.MACKey},
	}
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
		"version":  append([]byte{1}, frame[1:]...),
		"trailing": append(bytes.Clone(frame), 0),
		"huge":     make([]byte, maxFrame+1),
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

// pair is both ends of a conversation in this process.
func pair(t *testing.T) (ours, theirs *Socket) {
	t.Helper()
	ours, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return ours, NewSocket(fd)
}

// dial serves a token and returns the other end and how serving ended.
func dial(t *testing.T) (*Socket, *mortal, <-chan error) {
	t.Helper()
	ours, theirs := pair(t)
	token, ended := &mortal{Token: memory.New(), dead: make(chan struct{})}, make(chan error, 1)
	go func() {
		ended <- Serve(theirs, token, 2)
		_ = theirs.Close()
	}()
	t.Cleanup(func() { _ = ours.Close() })
	return ours, token, ended
}

func ask(t *testing.T, conn *Socket, q Request) Response {
	t.Helper()
	if q.Deadline == 0 {
		q.Deadline = Now() + int64(time.Second)
	}
	if _, err := conn.Write(q.Append(nil)); err != nil {
		t.Fatal(err)
	}
	p, err := ReadResponse(conn, Buffer())
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
		{Op: Sign, Payload: AppendSign(nil, hsm.ES256, make([]byte, 20))}: hsm.ErrInput,
		{Op: Sign, Payload: AppendSign(nil, hsm.ES256, make([]byte, 32))}: hsm.ErrKey,
		{Op: Sign}:    hsm.ErrInput,
		{Op: Encrypt}: hsm.ErrInput,
		{Op: Rewrap}:  hsm.ErrInput,
		{Op: Decrypt, Payload: []byte{0, 0, 0, 9, 1}}:      hsm.ErrInput,
		{Op: Encrypt, Payload: AppendCrypt(nil, nil, nil)}: hsm.ErrKey,
		{Op: Restore}:                           hsm.ErrInput,
		{Op: Adopt}:                             hsm.ErrInput,
		{Op: Destroy}:                           hsm.ErrKey,
		{Op: StoreCertificate}:                  hsm.ErrInput,
		{Op: Derive, Payload: make([]byte, 65)}: hsm.ErrInput,
		{Op: Generate}:                          hsm.ErrInput,
		{Op: Generate, Payload: AppendSpec(nil, hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey})}: hsm.ErrExists,
		{Op: MAC, Key: keys[0].ID, Deadline: Now() - 1}:                                          hsm.ErrUnavailable,
		{Op: MAC, Key: keys[0].ID, Deadline: -1, ID: 1 << 9}:                                     hsm.ErrUnavailable,
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
		"too long": append([]byte{0, 0, 0, 1, byte(MAC)}, make([]byte, maxFrame)...),
		"short":    append([]byte{0, 0, 0, 1, byte(MAC)}, make([]byte, 27)...),
		"op":       append([]byte{0, 0, 0, 1, 99}, make([]byte, 28)...),
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
	public := []byte("a public key")
	sum := sha256.Sum256(public)
	good := appendKey(nil, hsm.Key{ID: hsm.KeyID(sum[:20]), Label: "l", Public: public, Sealed: []hsm.Sealed{{1}, {2, 3}}})
	if keys, err := ParseKeys(good); err != nil || len(keys) != 1 || len(keys[0].Sealed) != 2 {
		t.Errorf("%v, %v", keys, err)
	}
	for name, bad := range map[string][]byte{
		"cut": good[:len(good)-1], "trailing": append(bytes.Clone(good), 1),
		"id": appendKey(nil, hsm.Key{Label: "l", Public: public}),
	} {
		if keys, err := ParseKeys(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v, %v, want ErrFrame", name, keys, err)
		}
	}
}

func TestParseCertificates(t *testing.T) {
	want := []hsm.Certificate{{Key: hsm.KeyID{1}, Label: "ca@1", DER: []byte{2, 3}}, {Key: hsm.KeyID{4}, Label: "ca@2", DER: []byte{5}}}
	var b []byte
	for _, c := range want {
		b = appendCertificate(b, c)
	}
	if got, err := ParseCertificates(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for name, bad := range map[string][]byte{"cut": b[:len(b)-1], "trailing": append(bytes.Clone(b), 0)} {
		if got, err := ParseCertificates(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v, %v, want ErrFrame", name, got, err)
		}
	}
}

func TestParseObjects(t *testing.T) {
	want := []hsm.Object{
		{Class: "CKO_PRIVATE_KEY", KeyType: "CKK_EC", ID: []byte{1, 2, 3}, Label: "kem@1", True: hsm.AttrDerive, Told: hsm.AttrUsages, Mechanisms: []string{"CKM_ECDSA", "0x7"}},
		{Class: "CKO_SECRET_KEY", ID: []byte{}},
	}
	var b []byte
	for _, o := range want {
		b = appendObject(b, o)
	}
	if got, err := ParseObjects(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range b {
		if got, err := ParseObjects(b[:n]); err == nil && len(got) > 1 {
			t.Errorf("cut to %d bytes: %v", n, got)
		}
	}
	long := appendObject(nil, hsm.Object{Label: strings.Repeat("x", 1<<17), ID: make([]byte, 1<<17)})
	if got, err := ParseObjects(long); err != nil || len(got) != 1 || len(got[0].Label) != maxText || len(got[0].ID) != maxText {
		t.Errorf("a long label: %v", err)
	}
}

// What changes the token is done once; what makes or lists objects takes long.
func TestOps(t *testing.T) {
	once := []Op{Generate, Restore, Adopt, Destroy, StoreCertificate}
	for op := Sign; op <= LastOp; op++ {
		if op.String() == "" || op.Repeatable() == slices.Contains(once, op) {
			t.Errorf("op %d, %q: repeatable %v", op, op, op.Repeatable())
		}
		if slow := !op.Repeatable() || op == Keys || op == Certificates || op == Objects; op.Slow() != slow {
			t.Errorf("%s: slow %v", op, op.Slow())
		}
	}
}

// many is a token with more keys than fit a frame.
type many struct{ *mortal }

func (many) Keys(context.Context) ([]hsm.Key, error) {
	keys := make([]hsm.Key, 2000)
	for i := range keys {
		keys[i] = hsm.Key{ID: hsm.KeyID{byte(i >> 8), byte(i)}, Label: fmt.Sprint("key@", i), Usage: hsm.MACKey, Sealed: []hsm.Sealed{make([]byte, 65)}, Copied: true}
	}
	return keys, nil
}

func TestLongAnswer(t *testing.T) {
	ours, theirs := pair(t)
	token := many{&mortal{dead: make(chan struct{})}}
	go func() { _ = Serve(theirs, token, 1) }()
	defer ours.Close()
	p, payload, frames := ask(t, ours, Request{ID: 7, Op: Keys}), []byte(nil), 1
	for payload = p.Payload; p.More; frames++ {
		var err error
		if p, err = ReadResponse(ours, Buffer()); err != nil || p.ID != 7 {
			t.Fatalf("%+v, %v", p, err)
		}
		payload = append(payload, p.Payload...)
	}
	want, err := token.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseKeys(payload); err != nil || !reflect.DeepEqual(got, want) || frames < 3 {
		t.Errorf("%d keys in %d frames, %v; want %d", len(got), frames, err, len(want))
	}
}

// Whoever is blocked in a socket comes back when it is closed, and on a tick.
func TestSocketUnblocks(t *testing.T) {
	ours, theirs := pair(t)
	defer theirs.Close()
	if err := ours.Tick(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Read(Buffer()); !IsTick(err) {
		t.Errorf("Read: %v, want a tick", err)
	}
	ended := make(chan error, 3)
	for range cap(ended) {
		go func() {
			_, err := theirs.Read(Buffer())
			ended <- err
		}()
	}
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, io.EOF) {
			t.Errorf("Read of a closed pair: %v, want EOF", err)
		}
	}
	if _, err := theirs.Write([]byte{1}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write to a closed pair: %v", err)
	}
	if _, err := ours.Write([]byte{1}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write after Close: %v", err)
	}
	if _, err := ours.Read(Buffer()); !errors.Is(err, io.EOF) {
		t.Errorf("Read after Close: %v", err)
	}
	if err := ours.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

// A peer that does not read makes a write wait, and tick.
func TestSocketFull(t *testing.T) {
	ours, theirs := pair(t)
	defer theirs.Close()
	defer ours.Close()
	if err := ours.Tick(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, maxFrame)
	sent, err := 0, error(nil)
	for ; err == nil; sent++ {
		_, err = ours.Write(message)
	}
	if !IsTick(err) || sent < 2 {
		t.Fatalf("%v after %d messages, want a tick", err, sent)
	}
	for range sent - 1 {
		if n, err := theirs.Read(Buffer()); err != nil || n != maxFrame {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if _, err := ours.Write(message); err != nil {
		t.Errorf("Write once there is room: %v", err)
	}
}

func TestDeadline(t *testing.T) {
	now := time.Now()
	d := &deadline{at: now.Add(time.Hour)}
	if at, ok := d.Deadline(); !ok || !at.Equal(d.at) || d.Err() != nil {
		t.Errorf("%v, %v, %v", at, ok, d.Err())
	}
	d.release()
	d = &deadline{at: now.Add(5 * time.Millisecond)}
	defer d.release()
	<-d.Done()
	if !errors.Is(d.Err(), context.DeadlineExceeded) || time.Now().Before(d.at) {
		t.Errorf("%v at %v", d.Err(), time.Now())
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(Request{ID: 7, Op: Sign, Deadline: 9, Key: hsm.KeyID{1}, Payload: []byte("p")}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseRequest(b)
		if err == nil && !bytes.Equal(q.Append(nil), b) {
			t.Errorf("%x is %+v", b, q)
		}
	})
}

func FuzzResponse(f *testing.F) {
	f.Add(Response{ID: 7, Took: time.Millisecond, Payload: []byte("p")}.append(nil))
	f.Add(Response{ID: 7, More: true, Payload: []byte("p")}.append(nil))
	f.Add(Response{ID: 7, Err: hsm.ErrKey}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseResponse(b)
		if err != nil || p.Err != nil {
			return
		}
		if !bytes.Equal(p.append(nil), b) {
			t.Errorf("%x is %+v", b, p)
		}
		if _, err := ParseKeys(p.Payload); err != nil && !errors.Is(err, ErrFrame) {
			t.Errorf("%v", err)
		}
	})
}
