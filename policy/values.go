package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"countersign/protocol"
)

// money is the currency of a service being checked.
type money struct {
	currency string // "" if there is none or it is wrong
	digits   int    // of the minor unit
	given    bool   // the key is there, right or wrong
}

// span is a duration's key, bounds and default.
type span struct {
	key         string
	least, most time.Duration
	absent      time.Duration
}

func (v value) String() string {
	switch raw := v.raw.(type) {
	case string:
		return fmt.Sprintf("%q", raw)
	case int64, float64, bool:
		return fmt.Sprintf("%v", raw)
	default:
		return "another kind of value"
	}
}

func (c *checker) money(v value) money {
	if v.raw == nil {
		return money{}
	}
	code, ok := v.raw.(string)
	if !ok {
		c.fail("currency: want a string such as \"EUR\", found %s", v)
		return money{given: true}
	}
	digits, err := minorDigits(code)
	if err != nil {
		c.fail("%v", err)
		return money{given: true}
	}
	return money{currency: code, digits: digits, given: true}
}

// amount returns minor units, and false if there is no sound amount.
func (c *checker) amount(v value, where string, m money) (uint64, bool) {
	s, ok := v.raw.(string)
	switch {
	case v.raw == nil:
		c.fail("%s is missing", where)
		return 0, false
	case !ok:
		c.fail("%s: want a string such as \"50.00\", found %s", where, v)
		return 0, false
	case m.currency == "":
		return 0, false // the missing or wrong currency is reported already
	}
	minor, err := parseMinor(s, m.digits)
	if err != nil {
		c.fail("%s %q %s: %v", where, s, m.currency, err)
		return 0, false
	}
	return minor, true
}

func (c *checker) duration(v value, s span) time.Duration {
	text, ok := v.raw.(string)
	if v.raw == nil {
		return s.absent
	}
	d, err := time.ParseDuration(text)
	switch {
	case !ok || err != nil:
		c.fail("%s: want a string such as %q, found %s", s.key, s.least, v)
	case d < s.least || d > s.most:
		c.fail("%s %q: want %s to %s", s.key, text, s.least, s.most)
	case d%time.Second != 0:
		c.fail("%s %q: want whole seconds", s.key, text)
	}
	return d
}

func (c *checker) limit(r rawLimit, where string, m money) Limit {
	if r.Window.raw == nil {
		c.fail("%swindow is missing", where)
	}
	if r.Count.raw == nil && r.Amount.raw == nil {
		c.fail("%scount and amount are missing: it would bound nothing", where)
	}
	return Limit{
		Window: c.duration(r.Window, span{where + "window", minWindow, maxWindow, 0}),
		Count:  c.limitCount(r.Count, where),
		Amount: c.limitAmount(r.Amount, where, m),
	}
}

func (c *checker) limitCount(v value, where string) uint64 {
	n, ok := v.raw.(int64)
	switch {
	case v.raw == nil:
		return 0
	case !ok:
		c.fail("%scount: want a whole number, found %s", where, v)
	case n < 1:
		c.fail("%scount %d: want 1 or more", where, n)
	default:
		return uint64(n)
	}
	return 0
}

func (c *checker) limitAmount(v value, where string, m money) uint64 {
	switch {
	case v.raw == nil:
		return 0
	case !m.given:
		c.fail("%samount needs the service to have a currency", where)
		return 0
	}
	minor, ok := c.amount(v, where+"amount", m)
	if ok && minor == 0 {
		c.fail("%samount: want more than zero", where)
	}
	return minor
}

// parseMinor reads a decimal number of major units as minor units.
func parseMinor(s string, digits int) (uint64, error) {
	whole, fraction, dotted := strings.Cut(s, ".")
	switch {
	case !allDigits(whole) || dotted && !allDigits(fraction):
		return 0, errors.New("want digits with at most one decimal point")
	case len(whole) > 1 && whole[0] == '0':
		return 0, errors.New("a leading zero is not allowed")
	case dotted && len(fraction) != digits:
		return 0, fmt.Errorf("want %d digits after the decimal point or none, found %d", digits, len(fraction))
	}
	if !dotted {
		fraction = strings.Repeat("0", digits)
	}
	minor, err := strconv.ParseUint(whole+fraction, 10, 64)
	if err != nil || minor > protocol.MaxMinor {
		return 0, fmt.Errorf("at most %d minor units are allowed", uint64(protocol.MaxMinor))
	}
	return minor, nil
}

func allDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// minorDigits returns the number of digits of a currency's minor unit.
func minorDigits(currency string) (int, error) {
	if len(currency) != 3 || strings.Trim(currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return 0, fmt.Errorf("currency %q: want three letters A to Z", currency)
	}
	digits, known := protocol.MinorDigits(currency)
	if !known {
		return 0, fmt.Errorf("currency %q: no active ISO 4217 code with a known minor unit", currency)
	}
	return digits, nil
}
