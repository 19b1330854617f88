package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// MaxDocument is the largest policy document accepted, in bytes.
const MaxDocument = 64 << 10

// Problem is one thing wrong with a policy document.
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

// Problems is everything wrong with a policy document, in the order of lines.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return "policy: " + strings.Join(lines, "\npolicy: ")
}

// document is policy.toml as written. Values are kept as they came, so that
// wrong types are reported together with everything else.
type document struct {
	Service  []rawService     `toml:"service"`
	UV       rawUV            `toml:"uv"`
	Approval rawApproval      `toml:"approval"`
	Quorum   map[string]value `toml:"quorum"`
}

type rawService struct {
	ID       value      `toml:"id"`
	Name     value      `toml:"name"`
	Level    value      `toml:"level"`
	Currency value      `toml:"currency"`
	Levels   []rawTier  `toml:"levels"`
	TTL      value      `toml:"ttl"`
	Lifetime value      `toml:"lifetime"`
	Limits   []rawLimit `toml:"limits"`
}

type rawTier struct {
	From  value `toml:"from"`
	Level value `toml:"level"`
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

// Parse reads and checks a policy document. An error is [Problems], with every
// problem found; only a document that is no TOML, or has a table where a value
// belongs, is reported for its first one alone.
func Parse(doc []byte) (*Policy, error) {
	if len(doc) > MaxDocument {
		return nil, Problems{{Text: fmt.Sprintf("%d bytes, at most %d are allowed", len(doc), MaxDocument)}}
	}
	var raw document
	md, err := toml.Decode(string(doc), &raw)
	if err != nil {
		return nil, Problems{decodeProblem(err)}
	}
	policy, problems := examine(raw, unlocated(md.Keys()))
	if undecoded := md.Undecoded(); len(problems) == 0 && len(undecoded) > 0 {
		problems = Problems{{Text: fmt.Sprintf("unknown key %s", undecoded[0])}}
	}
	if len(problems) == 0 {
		policy.hash = sha256.Sum256(doc)
		return policy, nil
	}
	if keys := locate(string(doc)); len(keys) == len(md.Keys()) {
		_, problems = examine(raw, keys)
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
	return nil, problems
}

// unlocated is the keys of a document whose lines are not needed yet.
func unlocated(keys []toml.Key) []located {
	all := make([]located, len(keys))
	for i, key := range keys {
		all[i].key = key
	}
	return all
}

func examine(raw document, keys []located) (*Policy, Problems) {
	c := checker{problems: unknownKeys(keys), lines: serviceLines(keys)}
	p := &Policy{services: c.services(raw), approval: c.approval(raw.Approval), attestation: c.attestation(raw.UV)}
	p.quorum, p.keysOnly = c.quorums(raw.Quorum, keys)
	return p, c.problems
}

var decodePrefix = regexp.MustCompile(`^toml: line (\d+) \(last key "(.*?)"\): `)

// decodeProblem turns the decoder's error into a problem with its line.
func decodeProblem(err error) Problem {
	var syntax toml.ParseError
	if errors.As(err, &syntax) {
		return Problem{Line: syntax.Position.Line, Text: syntax.Message}
	}
	text := err.Error()
	if m := decodePrefix.FindStringSubmatch(text); m != nil {
		line, _ := strconv.Atoi(m[1]) // digits by the expression above
		return Problem{Line: line, Text: m[2] + ": " + text[len(m[0]):]}
	}
	return Problem{Text: text}
}

// unknownKeys compares exactly: the decoder itself would take Level for level,
// and choose at random if both are there.
func unknownKeys(keys []located) Problems {
	known := make(map[string]bool)
	collectKeys(reflect.TypeFor[document](), "", known)
	var problems Problems
	for _, k := range keys {
		if !known[k.key.String()] && !(len(k.key) > 1 && k.key[0] == "quorum") { // which quorums judges
			problems = append(problems, Problem{Line: k.line, Text: fmt.Sprintf("unknown key %s", k.key)})
		}
	}
	return problems
}

func collectKeys(t reflect.Type, prefix string, known map[string]bool) {
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[value]() {
		return
	}
	for field := range t.Fields() {
		key := prefix + field.Tag.Get("toml")
		known[key] = true
		collectKeys(field.Type, key+".", known)
	}
}

// serviceLines returns where each service begins. Services of one inline array
// all begin on its line.
func serviceLines(keys []located) []int {
	var lines []int
	for _, k := range keys {
		if k.key.String() == "service" {
			lines = append(lines, k.line)
		}
	}
	return lines
}
