package policy

import (
	"fmt"
	"time"
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
	digits, err := MinorDigits(code)
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
