package worker

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/hsm/wire"
)

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
func pair(t *testing.T) (ours, theirs *wire.Socket) {
	t.Helper()
	ours, file, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return ours, wire.NewSocket(fd)
}

// dial serves a token and returns the other end and how serving ended.
func dial(t *testing.T) (*wire.Socket, *mortal, <-chan error) {
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

func ask(t *testing.T, conn *wire.Socket, q wire.Request) wire.Response {
	t.Helper()
	q.ID = 7
	if q.Deadline == 0 {
		q.Deadline = wire.Now() + int64(time.Second)
	}
	if _, err := conn.Write(q.Append(nil)); err != nil {
		t.Fatal(err)
	}
	p, err := wire.ReadResponse(conn, wire.Buffer())
	if err != nil {
		t.Fatal(err)
	}
	if p.ID != q.ID {
		t.Fatalf("answer to %d, asked %d", p.ID, q.ID)
	}
	return p
}

func newPrivate(t *testing.T) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newPoint(t *testing.T) *ecdh.PublicKey {
	t.Helper()
	return newPrivate(t).PublicKey()
}

func TestServe(t *testing.T) {
	conn, token, ended := dial(t)
	spec := hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey}
	p := ask(t, conn, wire.Generate(spec))
	keys, err := wire.ParseKeys(p.Payload)
	if err != nil || len(keys) != 1 || keys[0].Label != "mac@1" {
		t.Fatalf("%v, %v", keys, err)
	}
	want, err := token.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p = ask(t, conn, wire.Keys()); p.Err != nil {
		t.Fatal(p.Err)
	}
	if got, err := wire.ParseKeys(p.Payload); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("keys %v, %v; want %v", got, err, want)
	}
	if p = ask(t, conn, wire.MAC(keys[0].ID, []byte("x"))); len(p.Payload) != 32 || p.Err != nil {
		t.Errorf("MAC %x, %v", p.Payload, p.Err)
	}
	late := func(deadline int64) *wire.Request {
		return &wire.Request{Op: wire.MAC(keys[0].ID, nil).Op, Key: keys[0].ID, Deadline: deadline}
	}
	with := func(q wire.Request, payload []byte) *wire.Request {
		q.Payload = payload
		return &q
	}
	point := newPoint(t)
	for q, want := range map[*wire.Request]error{
		with(wire.Sign(hsm.KeyID{}, hsm.ES256, nil), []byte{1, 2, 3}):                           hsm.ErrInput,
		with(wire.Sign(hsm.KeyID{}, hsm.ES256, nil), append([]byte{1}, make([]byte, 32)...)):    hsm.ErrKey,
		with(wire.Sign(hsm.KeyID{}, hsm.ES256, nil), nil):                                       hsm.ErrInput,
		with(wire.Import(hsm.Import{Ephemeral: point}), nil):                                    hsm.ErrInput,
		with(wire.Rewrap(hsm.Rewrap{}), nil):                                                    hsm.ErrInput,
		with(wire.Restore(hsm.Restore{}), nil):                                                  hsm.ErrInput,
		with(wire.Adopt(spec, newPrivate(t)), nil):                                              hsm.ErrInput,
		with(wire.Destroy(hsm.KeyID{}), nil):                                                    hsm.ErrKey,
		with(wire.StoreCertificate(hsm.Certificate{}), nil):                                     hsm.ErrInput,
		with(wire.Decap(hsm.KeyID{}, hsm.DHKEM, point), append([]byte{1}, make([]byte, 65)...)): hsm.ErrInput,
		with(wire.Generate(spec), nil):                                                          hsm.ErrInput,
		with(wire.Generate(spec), wire.Generate(spec).Payload):                                  hsm.ErrExists,
		late(wire.Now() - 1):                                                                    hsm.ErrUnavailable,
		late(-1):                                                                                hsm.ErrUnavailable,
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
	p := ask(t, conn, wire.MAC(hsm.KeyID{}, []byte("die")))
	if !errors.Is(p.Err, wire.ErrLost) || !errors.Is(p.Err, hsm.ErrUnavailable) || !strings.Contains(p.Err.Error(), "device removed") {
		t.Errorf("%v, want wire.ErrLost", p.Err)
	}
	if err := <-ended; !errors.Is(err, wire.ErrLost) {
		t.Errorf("Serve: %v, want wire.ErrLost", err)
	}
}

func TestServeMalformed(t *testing.T) {
	for name, bad := range map[string][]byte{
		"too long": append([]byte{0, 0, 0, 1, byte(wire.MAC(hsm.KeyID{}, nil).Op)}, wire.Buffer()...),
		"short":    append([]byte{0, 0, 0, 1, byte(wire.MAC(hsm.KeyID{}, nil).Op)}, make([]byte, 27)...),
		"op":       append([]byte{0, 0, 0, 1, 99}, make([]byte, 28)...),
	} {
		conn, _, ended := dial(t)
		if _, err := conn.Write(bad); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, wire.ErrFrame) {
			t.Errorf("%s: %v, want wire.ErrFrame", name, err)
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
	p, payload, frames := ask(t, ours, wire.Keys()), []byte(nil), 1
	for payload = p.Payload; p.More; frames++ {
		var err error
		if p, err = wire.ReadResponse(ours, wire.Buffer()); err != nil || p.ID != 7 {
			t.Fatalf("%+v, %v", p, err)
		}
		payload = append(payload, p.Payload...)
	}
	want, err := token.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := wire.ParseKeys(payload); err != nil || !reflect.DeepEqual(got, want) || frames < 3 {
		t.Errorf("%d keys in %d frames, %v; want %d", len(got), frames, err, len(want))
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
