package message

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"countersign/protocol"
)

// MaxFrame is the longest message on a wire link, in bytes, PROTOCOL.md §5.
const MaxFrame = 2048

const frameHead = 2

// ReadFrame reads one message of a wire link: 2 bytes of big-endian length, then
// the message. An end before the first byte is [io.EOF], one in between
// [io.ErrUnexpectedEOF]; an empty or too long message is CodeFormat, and the
// link is to be closed.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("reading frame length: %w", err)
	}
	n := binary.BigEndian.Uint16(head[:])
	if n == 0 || n > MaxFrame {
		return nil, protocol.CodeFormat.Errorf("frame of %d bytes: want 1 to %d", n, MaxFrame)
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(r, msg); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading frame: %w", err)
	}
	return msg, nil
}

// WriteFrame writes length and message in one Write. CodeFormat if the message is
// empty or too long.
func WriteFrame(w io.Writer, msg []byte) error {
	if len(msg) == 0 || len(msg) > MaxFrame {
		return protocol.CodeFormat.Errorf("message of %d bytes: want 1 to %d", len(msg), MaxFrame)
	}
	frame := make([]byte, frameHead, frameHead+len(msg))
	binary.BigEndian.PutUint16(frame, uint16(len(msg)))
	if _, err := w.Write(append(frame, msg...)); err != nil {
		return fmt.Errorf("writing frame: %w", err)
	}
	return nil
}
