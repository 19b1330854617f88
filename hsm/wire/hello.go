package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"countersign/hsm"
)

const version = 5

// Config is the first frame, parent to child: the token to open.
type Config struct {
	Module, TokenLabel, TokenSerial string
	PIN                             hsm.PIN
	Sessions                        int         // 0 to 32767, 0 is the child's default
	InitArgs                        string      // for C_Initialize, or empty
	Require                         []hsm.Usage // usages that serving depends on, at most 255
	HostCheck                       bool        // passwords are checked in the memory of the child
}

// WriteConfig sends the first frame and erases the bytes it sent, but not c.PIN.
func WriteConfig(w io.Writer, c Config) error {
	size := 32
	for _, n := range []int{len(c.Module), len(c.TokenLabel), len(c.TokenSerial), len(c.PIN), len(c.InitArgs), c.Sessions} {
		if n < 0 || n > math.MaxInt16 {
			return fmt.Errorf("writing worker configuration: value of %d: %w", n, ErrFrame)
		}
		size += n
	}
	if len(c.Require) > math.MaxUint8 {
		return fmt.Errorf("writing worker configuration: %d usages: %w", len(c.Require), ErrFrame)
	}
	// Allocated at its full size: growing would leave copies of the PIN behind.
	buf := make([]byte, 0, size+len(c.Require))
	buf = append(buf, version)
	buf = appendText(appendText(appendText(buf, c.Module), c.TokenLabel), c.TokenSerial)
	buf = binary.BigEndian.AppendUint16(appendText(buf, c.PIN), uint16(c.Sessions))
	defer clear(buf)
	buf = append(appendText(buf, c.InitArgs), byte(len(c.Require)))
	for _, u := range c.Require {
		buf = append(buf, byte(u))
	}
	buf = append(buf, flag(c.HostCheck))
	if _, err := w.Write(buf); err != nil {
		return fmt.Errorf("writing worker configuration: %w", err)
	}
	return nil
}

func flag(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// ReadConfig reads the first frame. The PIN lies in the only copy of the frame, so erasing
// it leaves no copy.
func ReadConfig(r io.Reader) (Config, error) {
	buf, err := readFrame(r, Buffer())
	if err != nil {
		return Config{}, fmt.Errorf("reading worker configuration: %w", err)
	}
	in := reader{rest: buf}
	if v := in.u8(); v != version {
		return Config{}, fmt.Errorf("reading worker configuration: version %d: %w", v, ErrFrame)
	}
	c := Config{Module: string(in.text()), TokenLabel: string(in.text()), TokenSerial: string(in.text())}
	c.PIN, c.Sessions, c.InitArgs = hsm.PIN(in.text()), in.u16(), string(in.text())
	for range in.u8() {
		c.Require = append(c.Require, hsm.Usage(in.u8()))
	}
	c.HostCheck = in.u8() == 1
	if err := in.done(); err != nil {
		c.PIN.Zero()
		return Config{}, fmt.Errorf("reading worker configuration: %w", err)
	}
	return c, nil
}

// Hello is the child's answer once its token is open.
type Hello struct {
	Notices []string // mechanisms that the module lacks and serving does not need, at most 255
	Ways    []string // how the module is used, at most 255
	KEMs    []hsm.KEM
}

// WriteHello sends the answer to the configuration: the error of opening the
// token, or h.
func WriteHello(w io.Writer, h Hello, failed error) error {
	buf := []byte{byte(statusOf(failed))}
	if failed != nil {
		buf = appendText(buf, clip(failed.Error()))
	} else {
		buf = append(appendTexts(appendTexts(buf, h.Notices), h.Ways), byte(len(h.KEMs)))
		for _, k := range h.KEMs {
			buf = append(buf, byte(k))
		}
	}
	_, err := w.Write(buf)
	return err
}

func appendTexts(buf []byte, texts []string) []byte {
	buf = append(buf, byte(len(texts)))
	for _, text := range texts {
		buf = appendText(buf, clip(text))
	}
	return buf
}

func (r *reader) texts() (texts []string) {
	for range r.u8() {
		texts = append(texts, string(r.text()))
	}
	return texts
}

// ReadHello reads the answer to the configuration. An error of the child wraps the
// sentinel of package hsm that it had there. No answer or a malformed one is
// [hsm.ErrUnavailable].
func ReadHello(r io.Reader) (Hello, error) {
	buf, err := readFrame(r, Buffer())
	if err != nil {
		return Hello{}, fmt.Errorf("reading worker's hello: %v: %w", err, hsm.ErrUnavailable)
	}
	in := reader{rest: buf}
	var h Hello
	if s := status(in.u8()); s != ok {
		err = remote(s, in.text())
	} else {
		h.Notices, h.Ways = in.texts(), in.texts()
		for range in.u8() {
			h.KEMs = append(h.KEMs, hsm.KEM(in.u8()))
		}
	}
	if bad := in.done(); bad != nil {
		return Hello{}, fmt.Errorf("reading worker's hello: %v: %w", bad, hsm.ErrUnavailable)
	}
	return h, err
}
