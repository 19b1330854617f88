package wire

import (
	"errors"
	"io"
	"strings"
	"testing"

	"countersign/hsm"
)

func TestReport(t *testing.T) {
	long := strings.Repeat("x", 3*maxChunk)
	for name, c := range map[string]struct {
		v    any
		err  error
		want error
	}{
		"one frame": {v: map[string]string{"a": "b"}},
		"several":   {v: map[string]string{"a": long}},
		"PIN":       {err: hsm.ErrPIN, want: hsm.ErrPIN},
		"not JSON":  {v: "text", want: hsm.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			ours, file, err := Pair()
			if err != nil {
				t.Fatal(err)
			}
			theirs := NewSocket(int(file.Fd()))
			t.Cleanup(func() { _, _ = ours.Close(), file.Close() })
			sent := make(chan error, 1)
			go func() { sent <- WriteReport(theirs, c.v, c.err) }()
			var got map[string]string
			if err := ReadReport(ours, &got); !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if want, ok := c.v.(map[string]string); ok && got["a"] != want["a"] {
				t.Errorf("%d bytes came of %d", len(got["a"]), len(want["a"]))
			}
		})
	}
}

func TestNoReport(t *testing.T) {
	ours, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	var v any
	if err := ReadReport(ours, &v); !errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, io.EOF) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

func TestOrder(t *testing.T) {
	ours, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs := NewSocket(int(file.Fd()))
	defer func() { _, _ = ours.Close(), file.Close() }()
	type order struct{ Quick bool }
	if err := WriteOrder(ours, order{true}); err != nil {
		t.Fatal(err)
	}
	var got order
	if err := ReadOrder(theirs, &got); err != nil || !got.Quick {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ours.Write([]byte("{")); err != nil {
		t.Fatal(err)
	}
	if err := ReadOrder(theirs, &got); !errors.Is(err, ErrFrame) {
		t.Errorf("%v, want ErrFrame", err)
	}
	if err := WriteOrder(ours, strings.Repeat("x", maxFrame)); !errors.Is(err, ErrFrame) {
		t.Errorf("%v, want ErrFrame", err)
	}
}
