// Package secret provides types and methods for values that print as [redacted].
package secret

import (
	"fmt"
	"io"
)

// Redacted is printed in place of a secret.
const Redacted = "[redacted]"

// Print is the body of the method Format of a secret array: it prints [Redacted] for every verb.
func Print(f fmt.State) { _, _ = io.WriteString(f, Redacted) }

// Text is the result of the method MarshalText of a secret array.
func Text() ([]byte, error) { return []byte(Redacted), nil }

// Bytes is a secret as bytes, so that it can be erased.
type Bytes []byte

// Format prints [Redacted] for every verb.
func (Bytes) Format(f fmt.State, _ rune) { Print(f) }

// MarshalText keeps the secret out of JSON, YAML and logs.
func (Bytes) MarshalText() ([]byte, error) { return Text() }

// Zero erases the secret.
func (b Bytes) Zero() { clear(b) }

// Hidden makes a struct that embeds it print as [Redacted].
type Hidden struct{}

// Format prints [Redacted] for every verb.
func (Hidden) Format(f fmt.State, _ rune) { Print(f) }
