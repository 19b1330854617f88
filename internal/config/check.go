package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"countersign/appliance/recovery/custody"

	"countersign/protocol/deviceapi"
)

// checks collects problems; each method adds at most what its name says.
type checks struct{ problems []Problem }

func validate(d document) error {
	if problems := d.check(); len(problems) > 0 {
		return &Error{Problems: problems}
	}
	return nil
}

func (c *checks) fail(key, format string, args ...any) {
	c.problems = append(c.problems, Problem{Key: key, Text: fmt.Sprintf(format, args...)})
}

func (c *checks) filled(key, s string) {
	if s == "" {
		c.fail(key, "missing")
	}
}

func (c *checks) atMost(key, s string, size int) {
	if len(s) > size {
		c.fail(key, "%q has %d bytes, at most %d are possible", s, len(s), size)
	}
}

// span is a range of values, bounds included.
type span[T int | time.Duration] struct{ least, most T }

func (c *checks) number(key string, n int, in span[int]) {
	if n < in.least || n > in.most {
		c.fail(key, "%d: want %d to %d", n, in.least, in.most)
	}
}

func (c *checks) duration(key string, d Duration, in span[time.Duration]) {
	if d.Duration < in.least || d.Duration > in.most {
		c.fail(key, "%q: want %s to %s", d, in.least, in.most)
	}
}

func (c *checks) oneOf(key, s string, allowed ...string) {
	if !slices.Contains(allowed, s) {
		c.fail(key, "%q: want %s", s, strings.Join(allowed, ", "))
	}
}

// tokens checks the first token and, if configured, the second, which must be a different one.
func (c *checks) tokens(h HSM) {
	if h.TokenSerial == "" || h.URI == "" {
		c.filled("hsm.token_label", h.TokenLabel)
	}
	for i, t := range h.Tokens() {
		key := []string{"hsm.", "hsm.second."}[i]
		c.filled(key+"module", t.Module)
		c.atMost(key+"token_label", t.TokenLabel, 32)   // CK_TOKEN_INFO.label
		c.atMost(key+"token_serial", t.TokenSerial, 16) // CK_TOKEN_INFO.serialNumber
		c.atMost(key+"init_args", t.InitArgs, 1024)
		c.problems = append(c.problems, t.Pin.check(key+"pin")...)
	}
	if second := h.Second; len(h.Tokens()) == 1 && (second.Module != "" || second.InitArgs != "") {
		c.fail("hsm.second.token_label", "missing: which token of the second module is meant?")
	}
	if second := h.Second; second.Module == h.Module && second.TokenLabel == h.TokenLabel && second.TokenSerial == h.TokenSerial {
		c.fail("hsm.second.token_label", "this is the first token once more")
	}
}

func (c *checks) hostPort(key, s string) {
	if err := checkHostPort(s); err != nil {
		c.fail(key, "%v", err)
	}
}

// loopback requires a loopback address, so that plain HTTP never leaves the machine.
func (c *checks) loopback(key, s string) {
	host, _, _ := net.SplitHostPort(s)
	ip, err := netip.ParseAddr(host)
	switch {
	case checkHostPort(s) != nil:
		c.hostPort(key, s)
	case host != "localhost" && (err != nil || !ip.IsLoopback()):
		c.fail(key, "%q: want a loopback address such as 127.0.0.1, this listener has no protection", s)
	}
}

func (c *checks) socket(key, path string) {
	if err := checkUnixPath(path); err != nil {
		c.fail(key, "%v", err)
	}
}

var dnsName = regexp.MustCompile(`^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

func (c *checks) names(key string, api API) {
	if len(api.Names)+len(api.IPs) == 0 {
		c.fail(key+".names", "neither names nor ips: no client could verify the certificate")
	}
	for _, name := range api.Names {
		if len(name) > 253 || !dnsName.MatchString(name) {
			c.fail(key+".names", "%q: want a DNS name in lower case", name)
		}
	}
	for _, ip := range api.IPs {
		if !ip.IsValid() || ip.Zone() != "" || ip.IsUnspecified() {
			c.fail(key+".ips", "%q: want an address that clients connect to", ip)
		}
	}
}

var trustDomain = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)

// trustDomain checks the syntax of SPIFFE-ID §2.1.
func (c *checks) trustDomain(key, s string) {
	if !trustDomain.MatchString(s) {
		c.fail(key, "%q: want 1 to 255 lower-case letters, digits, dots, dashes or underscores", s)
	}
}

// point is a public key on P-256 in compressed form, or nothing.
func (c *checks) point(key, s string) {
	if s == "" {
		return
	}
	if _, err := custody.ParsePoint(s); err != nil {
		c.fail(key, "%q: want a public key, the 66 hexadecimal digits that countersignd init prints", s)
	}
}

func (c *checks) keys(k KeySchedule) {
	c.duration("keys.notice", k.Notice, span[time.Duration]{0, 90 * day})
	for _, row := range []struct {
		key    string
		period Duration
	}{
		{"kem", k.KEM},
		{"decision", k.Decision},
		{"ca", k.CA},
		{"client_ca", k.ClientCA},
		{"enrol", k.Enrol},
		{"wrap", k.Wrap},
		{"mac", k.MAC},
		{"root", k.Root},
	} {
		if row.period.Duration != 0 {
			c.duration("keys."+row.key, row.period, span[time.Duration]{time.Hour, 10 * 365 * day})
		}
	}
}

func (c *checks) log(l Log) {
	c.oneOf("log.level", l.Level, "trace", "debug", "info", "warn", "error")
	c.oneOf("log.format", l.Format, "json", "text")
}

func (c *checks) origin(key, s string) {
	if err := CheckOrigin(s); err != nil {
		c.fail(key, "%s", err)
	}
}

// CheckOrigin returns an error unless s is the address of an appliance: https://HOST:PORT, and nothing behind it.
func CheckOrigin(s string) error {
	u, err := url.Parse(s)
	switch {
	case s == "":
		return errors.New("missing")
	case err != nil || u.Scheme != "https" || u.Hostname() == "":
		return fmt.Errorf("%q: want https://HOST:PORT", s)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return fmt.Errorf("%q: want https://HOST:PORT and nothing behind it", s)
	}
	return nil
}

func (c *checks) links(links []Link) {
	if len(links) == 0 {
		c.fail("link", "no [[link]]: no phone could reach this device")
	}
	seen := make(map[Address]int)
	for i, l := range links {
		before := len(c.problems)
		c.oneOf("link.type", l.Type, "wire")
		if l.Class != l.Type {
			c.oneOf("link.class", l.Class, deviceapi.LinkClasses()...)
		}
		c.listener(l.Listen)
		if first := seen[l.Listen]; first > 0 && !l.Listen.IsZero() && !strings.HasSuffix(l.Listen.String(), ":0") {
			c.fail("link.listen", "%s is the address of link %d too", l.Listen, first)
		}
		seen[l.Listen] = i + 1
		for j := before; j < len(c.problems); j++ {
			c.problems[j].entry = i + 1
		}
	}
}

func (c *checks) listener(a Address) {
	if a.IsZero() {
		c.fail("link.listen", "missing")
	}
	if a.Network() == "unix" {
		c.socket("link.listen", a.Target())
	}
}

// maxServices leaves room for the protocol's own in a list of 256.
const maxServices = 253

func (c *checks) services(key string, ids []uint64) {
	if len(ids) > maxServices {
		c.fail(key, "%d services: at most %d are possible", len(ids), maxServices)
	}
	seen := make(map[uint64]bool)
	for _, id := range ids {
		switch {
		case id < 16 || id > math.MaxInt64: // the decoder wraps negative numbers
			c.fail(key, "service %d: want 16 or more, the lower ones are the protocol's own", int64(id))
		case seen[id]:
			c.fail(key, "service %d is there twice", id)
		}
		seen[id] = true
	}
}

func (c *checks) order(r Relay) {
	c.oneOf("order.source", r.Order.Source, OrderAccept, OrderStatic, OrderSocket)
	c.duration("order.approval_wait", r.Order.ApprovalWait, span[time.Duration]{10 * time.Second, time.Hour})
	switch r.Order.Source {
	case OrderAccept:
		if len(r.Accept) == 0 {
			c.fail("accept", "empty: with order.source = %q the device would act on nothing", OrderAccept)
		}
	case OrderSocket:
		c.socket("order.socket", r.Order.Socket)
	case OrderStatic:
		c.staticOrder(r.Order.Static)
	}
}

var currencyCode = regexp.MustCompile(`^[A-Z]{3}$`)

func (c *checks) staticOrder(o StaticOrder) {
	c.services("order.static.service", []uint64{o.Service})
	switch {
	case o.Currency == "" && o.AmountMinor != 0:
		c.fail("order.static.currency", "missing beside amount_minor")
	case o.Currency != "" && !currencyCode.MatchString(o.Currency):
		c.fail("order.static.currency", "%q: want three letters A to Z", o.Currency)
	case o.AmountMinor >= 1e15:
		c.fail("order.static.amount_minor", "%d: want 0 or more and less than 10^15", int64(o.AmountMinor))
	}
	c.atMost("order.static.text", o.Text, 44)
	c.atMost("order.static.reference", o.Reference, 64)
}

func (c *checks) hook(h Hook) {
	if len(h.Command) > 0 && h.Command[0] == "" {
		c.fail("hook.command", "the program is missing")
	}
	c.duration("hook.timeout", h.Timeout, span[time.Duration]{100 * time.Millisecond, 10 * time.Minute})
	c.variables("hook.environment", h.Environment)
}

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// variables checks names of environment variables. Values do not belong in the file.
func (c *checks) variables(key string, names []string) {
	for i, name := range names {
		switch {
		case strings.Contains(name, "="):
			c.fail(key, "has a value: write the name only, and set the value in the environment of the daemon")
		case !variable.MatchString(name):
			c.fail(key, "%q is not the name of an environment variable", name)
		case slices.Contains(names[:i], name):
			c.fail(key, "%s is named twice", name)
		}
	}
}

// command places a program named by a relative path in dir; a bare name is
// looked up in PATH when it runs.
func command(dir, program string) string {
	if filepath.Base(program) == program {
		return program
	}
	return under(dir, program)
}
