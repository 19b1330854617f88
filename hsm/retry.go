package hsm

import (
	"context"
	"errors"
)

// This file decides how often an operation is tried again. Each layer repeats only what
// the one below cannot:
//
//   - hsm/pkcs11, in one process: once after a stale key handle or a session in a bad
//     state, and while the token is busy or drops sessions; it stays within the deadline.
//   - hsm/pool, on one token: on up to [Tries] workers, if a worker died, answered wrongly
//     or was late. What changes the token is never repeated.
//   - hsm/failover, over several tokens: once on each, if [TryElsewhere] allows it.
//   - the keyring repeats nothing. A MAC cannot be verified, so it asks until two of at
//     most [Tries] answers are equal.

// Tries is how often an operation is done at most on one token. Two workers may die at once
// when a module is killed by a request that both were given.
const Tries = 3

// TryElsewhere reports whether another token with the same keys may succeed after err.
func TryElsewhere(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	for _, reason := range []error{ErrUnavailable, ErrBusy, ErrPIN, ErrKey, ErrUnsupported, context.DeadlineExceeded} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}
