package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"countersign/internal/tomldoc"
)

// MaxDocument is the largest policy document accepted, in bytes.
const MaxDocument = 64 << 10

// Problem is one mistake in a policy document.
type Problem struct {
	Line int // from 1; 0 if it concerns the document as a whole
	Text string
}

func (p Problem) String() string {
	if p.Line == 0 {
		return p.Text
	}
	return fmt.Sprintf("line %d: %s", p.Line, p.Text)
}

// Problems lists all mistakes in a policy document by line.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return "policy: " + strings.Join(lines, "\npolicy: ")
}

// document is policy.toml as written. Values keep their types, so that wrong types are reported
// together with other problems.
type document struct {
	Service  []rawService     `toml:"service"`
	UV       rawUV            `toml:"uv"`
	Approval rawApproval      `toml:"approval"`
	Password rawPassword      `toml:"password"`
	Quorum   map[string]value `toml:"quorum"`
}

type rawService struct {
	ID        value          `toml:"id"`
	Name      value          `toml:"name"`
	Level     value          `toml:"level"`
	Currency  value          `toml:"currency"`
	Levels    []rawTier      `toml:"levels"`
	Cumulated []rawCumulated `toml:"cumulated"`
	TTL       value          `toml:"ttl"`
	Lifetime  value          `toml:"lifetime"`
	Limits    []rawLimit     `toml:"limits"`
}

type rawTier struct {
	From  value `toml:"from"`
	Level value `toml:"level"`
}

type rawCumulated struct {
	Window value `toml:"window"`
	From   value `toml:"from"`
	Level  value `toml:"level"`
}

type rawLimit struct {
	Window value `toml:"window"`
	Count  value `toml:"count"`
	Amount value `toml:"amount"`
}

// value is any scalar, nil if its key is absent.
type value struct{ raw any }

// UnmarshalTOML keeps the value; it never fails.
func (v *value) UnmarshalTOML(raw any) error {
	v.raw = raw
	return nil
}

// Parse decodes and checks a policy document. Its error is [Problems] with everything that is wrong.
// Invalid TOML, or a table in place of a value, is reported alone.
func Parse(doc []byte) (*Policy, error) { return parse(doc, false) }

// ParseStored parses a document that an earlier release may have checked. Parts that such a release
// accepted and Parse refuses are ignored and grant nothing; [Policy.Ignored] lists them.
func ParseStored(doc []byte) (*Policy, error) { return parse(doc, true) }

// Ignored lists the parts of a stored document that are not in force, each with what to do about it.
func (p *Policy) Ignored() []string { return slices.Clone(p.ignored) }

func parse(doc []byte, stored bool) (*Policy, error) {
	if len(doc) > MaxDocument {
		return nil, Problems{{Text: fmt.Sprintf("%d bytes, at most %d are allowed", len(doc), MaxDocument)}}
	}
	var raw document
	md, err := toml.Decode(string(doc), &raw)
	if err != nil {
		return nil, Problems{decodeProblem(err)}
	}
	policy, problems := examine(raw, tomldoc.Keys(md), stored) // the lines are not needed yet
	if undecoded := md.Undecoded(); len(problems) == 0 && len(undecoded) > 0 {
		problems = Problems{{Text: fmt.Sprintf("unknown key %s", undecoded[0])}}
	}
	if len(problems) == 0 {
		policy.hash = sha256.Sum256(doc)
		return policy, nil
	}
	_, problems = examine(raw, tomldoc.Locate(string(doc), md), stored)
	slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
	return nil, problems
}

func examine(raw document, keys []tomldoc.Key, stored bool) (*Policy, Problems) {
	c := checker{stored: stored, problems: unknownKeys(keys), lines: serviceLines(keys)}
	p := &Policy{services: c.services(raw), approval: c.approval(raw.Approval), attestation: c.attestation(raw.UV)}
	p.passwordLength = c.passwordLength(raw.Password)
	p.quorum, p.keysOnly = c.quorums(raw.Quorum, keys)
	p.ignored = c.ignored
	return p, c.problems
}

// decodeProblem turns the decoder's error into a problem with its line.
func decodeProblem(err error) Problem {
	line, key, text := tomldoc.Explain(err)
	if key != "" && !errors.As(err, new(toml.ParseError)) {
		text = key + ": " + text
	}
	return Problem{Line: line, Text: text}
}

// unknownKeys compares case-sensitively. The TOML decoder would accept Level for level, and choose
// at random between both.
func unknownKeys(keys []tomldoc.Key) Problems {
	known := tomldoc.Fields(reflect.TypeFor[document]())
	var problems Problems
	for _, k := range keys {
		if !slices.Contains(known, k.Path.String()) && !(len(k.Path) > 1 && k.Path[0] == "quorum") { // quorums checks these
			problems = append(problems, Problem{Line: k.Line, Text: fmt.Sprintf("unknown key %s", k.Path)})
		}
	}
	return problems
}

// serviceLines returns the first line of each service. Services of one inline array all begin on its
// line.
func serviceLines(keys []tomldoc.Key) []int {
	var lines []int
	for _, k := range keys {
		if k.Path.String() == "service" {
			lines = append(lines, k.Line)
		}
	}
	return lines
}
