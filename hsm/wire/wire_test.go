package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/hsm"
)

func TestConfigRoundTrip(t *testing.T) {
	want := Config{
		Module: "/m.so", TokenLabel: "label", TokenSerial: "07", PIN: hsm.PIN("1234"), Sessions: 4,
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

func TestHello(t *testing.T) {
	var buf bytes.Buffer
	want := Hello{Notices: []string{"no wrapping"}, Ways: []string{"MAC: one", "wrap: other"}, KEMs: []hsm.KEM{hsm.KEM2}}
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
	once := []Op{opGenerate, opRestore, opAdopt, opDestroy, opStoreCertificate}
	for op := opSign; op <= Ops(); op++ {
		if op.String() == "" || op.Repeatable() == slices.Contains(once, op) {
			t.Errorf("op %d, %q: repeatable %v", op, op, op.Repeatable())
		}
		if slow := !op.Repeatable() || op == opKeys || op == opForeign || op == opCertificates || op == opObjects; op.Slow() != slow {
			t.Errorf("%s: slow %v", op, op.Slow())
		}
	}
}

// A closed socket unblocks its readers and writers.
func TestSocketUnblocks(t *testing.T) {
	ours, theirs := pair(t)
	defer theirs.Close()
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

func FuzzRequest(f *testing.F) {
	f.Add(Request{ID: 7, Op: opSign, Deadline: 9, Key: hsm.KeyID{1}, Payload: []byte("p")}.Append(nil))
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

// Now is between two readings of the clock itself, but for what the anchor may be
// off.
func TestNow(t *testing.T) {
	const off = int64(100 * time.Microsecond)
	for range 1000 {
		before, now, after := monotonic(), Now(), monotonic()
		if now < before-off || now > after+off {
			t.Fatalf("%d is not between %d and %d", now, before, after)
		}
	}
}

func BenchmarkNow(b *testing.B) {
	for name, f := range map[string]func() int64{"runtime": Now, "system call": monotonic} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				f()
			}
		})
	}
}
