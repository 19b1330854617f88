package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Level says how strongly a user must be authenticated, 1 (lowest) to 4.
// The zero value is no level: "nothing asked for" in a [Request], never in a
// [Grant].
type Level uint8

// The levels of PROTOCOL.md §4. Each asks for the factors of the one below it
// and one more.
const (
	LevelSignature      Level = 1
	LevelPassword       Level = 2
	LevelUVKey          Level = 3
	LevelSecondApprover Level = 4
)

// ErrLevelUnavailable means that a level beyond 4 was asked for (code 7).
var ErrLevelUnavailable = errors.New("level not available")

// LevelFrom converts a number received on the wire. 0 is "nothing asked for";
// a number above 4 is an error wrapping [ErrLevelUnavailable]. A plain
// conversion would turn 257 into 1.
func LevelFrom(n uint64) (Level, error) {
	if n > uint64(LevelSecondApprover) {
		return 0, fmt.Errorf("%w: %d", ErrLevelUnavailable, n)
	}
	return Level(n), nil
}

// ParseLevel reads the digit 1 to 4 that [Level.String] writes.
func ParseLevel(s string) (Level, error) {
	if len(s) != 1 || s[0] < '1' || s[0] > '4' {
		return 0, fmt.Errorf("level %q: want 1, 2, 3 or 4", s)
	}
	return Level(s[0] - '0'), nil
}

func (l Level) String() string { return strconv.Itoa(int(l)) }

// Factors is a set of ways to authenticate, as bits of P2.4 and of decision
// field 5 (PROTOCOL.md §3).
type Factors uint8

// The factors. FactorStrict is no evidence of the user: it announces that the
// device learns who the user is, and [Decide] asks nothing for it.
const (
	FactorSignature      Factors = 1
	FactorPassword       Factors = 2
	FactorUVKey          Factors = 4
	FactorSecondApprover Factors = 8
	FactorStrict         Factors = 16
)

var factorNames = []string{"signature", "password", "uv-key", "second-approver", "strict"}

// Required returns the factors a level demands. A level outside 1 to 4 has
// none, and [Decide] denies when nothing is required.
func Required(l Level) Factors {
	if l < LevelSignature || l > LevelSecondApprover {
		return 0
	}
	return Factors(1)<<l - 1
}

// Has reports whether every factor of want is in f.
func (f Factors) Has(want Factors) bool { return f&want == want }

// ParseFactors reads what [Factors.String] writes: names joined by "+", or
// "none". A name that is unknown, repeated or out of order is an error.
func ParseFactors(s string) (Factors, error) {
	var f Factors
	if s == "none" {
		return 0, nil
	}
	for name := range strings.SplitSeq(s, "+") {
		bit := factorBit(name)
		if bit == 0 {
			return 0, fmt.Errorf("factor %q: want none or some of %s", name, strings.Join(factorNames, "+"))
		}
		if f >= bit {
			return 0, fmt.Errorf("factors %q: %s is repeated or out of order", s, name)
		}
		f |= bit
	}
	return f, nil
}

func factorBit(name string) Factors {
	for i, n := range factorNames {
		if n == name {
			return 1 << i
		}
	}
	return 0
}

// String lists the factors by name, lowest bit first; a bit without a name is
// written as a number.
func (f Factors) String() string {
	if f == 0 {
		return "none"
	}
	var names []string
	for i, n := range factorNames {
		if f.Has(1 << i) {
			names = append(names, n)
		}
	}
	if rest := f >> len(factorNames) << len(factorNames); rest != 0 {
		names = append(names, strconv.Itoa(int(rest)))
	}
	return strings.Join(names, "+")
}
