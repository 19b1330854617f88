package policy

import (
	"errors"
	"math"
	"testing"
)

func TestAmount(t *testing.T) {
	for _, tc := range []struct {
		in, out string
		minor   uint64
	}{
		{"50.00 EUR", "50.00 EUR", 5000},
		{"50 EUR", "50.00 EUR", 5000},
		{"0.05 EUR", "0.05 EUR", 5},
		{"0 EUR", "0.00 EUR", 0},
		{"50 JPY", "50 JPY", 50},
		{"0 JPY", "0 JPY", 0},
		{"1.005 KWD", "1.005 KWD", 1005},
		{"9999999999999.99 USD", "9999999999999.99 USD", MaxMinor},
	} {
		a, err := ParseAmount(tc.in)
		if err != nil || a.Minor != tc.minor || a.String() != tc.out {
			t.Errorf("%q: %d, %q, %v; want %d, %q", tc.in, a.Minor, a, err, tc.minor, tc.out)
		}
	}
	for _, bad := range []string{
		"", "50", "50EUR", "50 eur", "50 EURO", "50 XXX", " EUR", "50.0 EUR", "50. EUR", ".50 EUR", "50.000 EUR",
		"-1 EUR", "+1 EUR", "1e3 EUR", "1_000 EUR", "1,00 EUR", "1.0.0 EUR", "01 EUR", "50.00 JPY", "1.00 KWD",
		"10000000000000.00 EUR", "50  EUR", "50 EUR ", "٥ EUR",
	} {
		if a, err := ParseAmount(bad); err == nil {
			t.Errorf("%q read as %s", bad, a)
		}
	}
	if got := (Amount{7, "QQQ"}).String(); got != `7 minor units of "QQQ"` {
		t.Errorf("unknown currency: %s", got)
	}
}

func TestMinorUnitsHoldEachCodeOnce(t *testing.T) {
	seen := 0
	for digits, codes := range minorUnits {
		for i := 0; i < len(codes); i += 4 {
			got, err := MinorDigits(codes[i : i+3])
			if err != nil || got != digits {
				t.Errorf("%s: %d, %v; want %d", codes[i:i+3], got, err, digits)
			}
			seen++
		}
	}
	if seen != len(minorDigits) {
		t.Errorf("%d codes written, %d in the index: one is there twice", seen, len(minorDigits))
	}
}

func TestLevel(t *testing.T) {
	want := []Factors{0, 1, 3, 7, 15}
	for n, factors := range want {
		l, err := LevelFrom(uint64(n))
		if err != nil || int(l) != n || Required(l) != factors {
			t.Errorf("%d: level %s, %v, factors %d; want %d", n, l, err, Required(l), factors)
		}
	}
	for _, n := range []uint64{5, 256, 257, math.MaxUint64} {
		if l, err := LevelFrom(n); !errors.Is(err, ErrLevelUnavailable) || l != 0 {
			t.Errorf("%d: level %s, %v", n, l, err)
		}
	}
	if Required(5) != 0 || Required(255) != 0 {
		t.Error("a level that does not exist has factors")
	}
	for _, s := range []string{"1", "2", "3", "4"} {
		if l, err := ParseLevel(s); err != nil || l.String() != s {
			t.Errorf("%q: %s, %v", s, l, err)
		}
	}
	for _, s := range []string{"", "0", "5", "01", "1 ", "one", "257"} {
		if l, err := ParseLevel(s); err == nil {
			t.Errorf("%q read as %s", s, l)
		}
	}
}

func TestFactors(t *testing.T) {
	for f := Factors(0); f < 32; f++ {
		got, err := ParseFactors(f.String())
		if err != nil || got != f {
			t.Errorf("%d: %q, %d, %v", f, f, got, err)
		}
	}
	if got := Factors(0x81).String(); got != "signature+128" {
		t.Errorf("unknown bit: %s", got)
	}
	for _, bad := range []string{"", "+", "pin", "signature+", "signature+signature", "password+signature", "none+signature", "32"} {
		if f, err := ParseFactors(bad); err == nil {
			t.Errorf("%q read as %s", bad, f)
		}
	}
}
