package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"countersign/protocol"
)

// Limits of a policy document, and the defaults of absent keys.
const (
	minService      = 16 // the protocol reserves 0 to 15 (PROTOCOL.md §3)
	defaultTTL      = 90 * time.Second
	maxTTL          = 300 * time.Second
	defaultLifetime = 120 * time.Second
	maxLifetime     = time.Hour
	minWindow       = time.Minute
	maxWindow       = 31 * 24 * time.Hour
)

var serviceName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// checker collects problems while it converts a document to services.
type checker struct {
	problems Problems
	lines    []int  // the first line of each service
	line     int    // of the service being checked
	subject  string // the service being checked, for messages
	stored   bool   // the document may say what earlier releases accepted
	ignored  []string
}

// ignore notes a part of a stored document that is not in force any more.
func (c *checker) ignore(text string) { c.ignored = append(c.ignored, text) }

func (c *checker) fail(format string, args ...any) {
	c.problems = append(c.problems, Problem{Line: c.line, Text: c.subject + fmt.Sprintf(format, args...)})
}

func (c *checker) services(raw document) map[protocol.Service]service {
	services := make(map[protocol.Service]service)
	ids, names := make(map[protocol.Service]int), make(map[string]int)
	for i, r := range raw.Service {
		c.begin(i)
		s := c.service(r)
		if first, taken := ids[s.id]; taken && s.id != 0 {
			c.fail("id %d is already used by service %d of the document", s.id, first)
		}
		if first, taken := names[s.name]; taken && s.name != "" {
			c.fail("name %q is already used by service %d of the document", s.name, first)
		}
		ids[s.id], names[s.name], services[s.id] = i+1, i+1, s
	}
	if len(raw.Service) == 0 {
		c.line, c.subject = 0, ""
		c.fail("no [[service]]: such a policy would deny everything")
	}
	return services
}

func (c *checker) begin(i int) {
	c.subject = fmt.Sprintf("service %d of the document: ", i+1)
	if len(c.lines) > 0 {
		c.line = c.lines[min(i, len(c.lines)-1)]
	}
}

func (c *checker) service(r rawService) service {
	s := service{id: c.id(r.ID), name: c.name(r.Name)}
	if s.id != 0 && s.name != "" {
		c.subject = fmt.Sprintf("service %d (%s): ", s.id, s.name)
	}
	s.ttl = c.duration(r.TTL, span{"ttl", time.Second, maxTTL, defaultTTL})
	s.lifetime = c.duration(r.Lifetime, span{"lifetime", time.Second, maxLifetime, defaultLifetime})
	m := c.money(r.Currency)
	s.currency = m.currency
	s.tiers = c.tiers(r, m)
	s.sums = c.cumulated(r, s, m)
	for i, l := range r.Limits {
		s.limits = append(s.limits, c.limit(l, fmt.Sprintf("limit %d: ", i+1), m))
	}
	return s
}

func (c *checker) id(v value) protocol.Service {
	id, ok := v.raw.(int64)
	switch {
	case v.raw == nil:
		c.fail("id is missing")
	case !ok:
		c.fail("id: want a whole number, found %s", v)
	case id < minService:
		c.fail("id %d: want %d or more, the protocol reserves the lower ones", id, minService)
	default:
		return protocol.Service(id)
	}
	return 0
}

func (c *checker) name(v value) string {
	name, ok := v.raw.(string)
	switch {
	case v.raw == nil:
		c.fail("name is missing")
	case !ok:
		c.fail("name: want a string, found %s", v)
	case !serviceName.MatchString(name):
		c.fail("name %q: want 1 to 64 lower-case letters, digits, dots, dashes or underscores, a letter or digit first", name)
	default:
		return name
	}
	return ""
}

func (c *checker) level(v value, where string) protocol.Level {
	n, ok := v.raw.(int64)
	switch {
	case v.raw == nil:
		c.fail("%slevel is missing", where)
	case !ok:
		c.fail("%slevel: want 1, 2, 3 or 4, found %s", where, v)
	}
	if level, err := protocol.ParseLevel(strconv.FormatInt(n, 10)); err == nil {
		return level
	}
	c.fail("%slevel %d: want 1, 2, 3 or 4", where, n)
	return 0
}

// tiers requires either one level, or a currency and levels by amount.
func (c *checker) tiers(r rawService, m money) []tier {
	switch priced := r.Currency.raw != nil; {
	case priced && r.Level.raw != nil:
		c.fail("level and currency exclude each other: a service with a price has levels")
	case priced && len(r.Levels) == 0:
		c.fail("levels are missing: a service with a currency needs them, starting at \"0\"")
	case !priced && r.Levels != nil:
		c.fail("levels need a currency")
	case !priced:
		return []tier{{level: c.level(r.Level, "")}}
	}
	return c.ladder(r.Levels, m)
}

// ladder checks the tiers of a service with a price: amounts rise from zero, and a higher amount
// never needs a lower level.
func (c *checker) ladder(raw []rawTier, m money) []tier {
	var tiers []tier
	sound := true
	for i, r := range raw {
		where := fmt.Sprintf("levels, entry %d: ", i+1)
		from, ok := c.amount(r.From, where+"from", m)
		t := tier{from: from, level: c.level(r.Level, where)}
		sound = sound && ok && t.level != 0
		tiers = append(tiers, t)
		switch {
		case !sound: // an earlier problem explains this one
		case i == 0 && from != 0:
			c.fail("%sfrom %s: the first must be \"0\"", where, r.From)
		case i > 0 && from <= tiers[i-1].from:
			c.fail("%sfrom %s: must be above the entry before", where, r.From)
		case i > 0 && t.level < tiers[i-1].level:
			c.fail("%slevel %d: below the %d of a smaller amount", where, t.level, tiers[i-1].level)
		}
	}
	return tiers
}

// money is the currency of a service being checked.
type money struct {
	currency string // "" if it is absent or invalid
	digits   int    // of the minor unit
	given    bool   // the key is present, valid or not
}

// span is the key, bounds and default of a duration.
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

// amount returns minor units, and false if the amount is invalid.
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
		return 0, false // the currency's problem is already reported
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
		c.fail("%scount and amount are missing: the limit would have no effect", where)
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
