package hsm

import (
	"fmt"
	"io"
)

// PIN is the user PIN of a token, as bytes so that it can be erased.
type PIN []byte

// String hides the PIN from logs and errors.
func (PIN) String() string { return "[redacted]" }

// GoString hides the PIN from %#v.
func (PIN) GoString() string { return "[redacted]" }

// Format hides the PIN from every other verb.
func (PIN) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// MarshalText hides the PIN from JSON and its like.
func (PIN) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// Zero erases the PIN.
func (p PIN) Zero() { clear(p) }
