package wire

import (
	"errors"

	"countersign/hsm"
)

// status is how an error crosses the socket.
type status byte

const (
	ok status = iota
	unavailable
	pin
	key
	exists
	input
	lost // the worker is about to exit; another one may answer
	garbled
	unsupported

	more status = 255 // no error, and not all of the payload
)

// ErrLost: the worker lost its token while it held the request, and exits. It
// wraps [hsm.ErrUnavailable].
var ErrLost error = &remoteError{"worker lost its token", hsm.ErrUnavailable}

// sentinels is the one table between the two; what is in no row is unavailable.
var sentinels = map[status]error{
	unavailable: hsm.ErrUnavailable, pin: hsm.ErrPIN, key: hsm.ErrKey,
	exists: hsm.ErrExists, input: hsm.ErrInput, lost: ErrLost,
	unsupported: hsm.ErrUnsupported, garbled: hsm.ErrGarbled,
}

func statusOf(err error) status {
	if err == nil {
		return ok
	}
	for _, s := range []status{lost, garbled, pin, key, exists, input, unsupported} {
		if errors.Is(err, sentinels[s]) {
			return s
		}
	}
	return unavailable
}

// remoteError has the text the child gave it and the sentinel of its status.
type remoteError struct {
	text     string
	sentinel error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }

func remote(s status, text []byte) error {
	sentinel, known := sentinels[s]
	if !known {
		sentinel = hsm.ErrUnavailable
	}
	return &remoteError{clip(string(text)), sentinel}
}

// clip bounds a text on its way to the log.
func clip(s string) string { return s[:min(len(s), 1024)] }
