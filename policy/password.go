package policy

import (
	"cmp"

	"countersign/protocol/password"
)

type rawPassword struct {
	MinLength value `toml:"min_length"`
}

// PasswordLength returns the least length of a new offline password, in characters. The appliance never sees a
// password: phones follow it (PROTOCOL.md §4.1).
func (p *Policy) PasswordLength() int { return cmp.Or(p.passwordLength, password.DefaultLength) }

// passwordLength returns [password] min_length, 0 without that line.
func (c *checker) passwordLength(r rawPassword) int {
	c.line, c.subject = 0, "password: "
	if r.MinLength.raw == nil {
		return 0
	}
	n, ok := r.MinLength.raw.(int64)
	if !ok || n < password.LeastLength || n > password.MostLength {
		c.fail("min_length: want a number of characters, %d to %d, found %v", password.LeastLength, password.MostLength, r.MinLength.raw)
		return 0
	}
	return int(n)
}
