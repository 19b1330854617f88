package policy

import (
	"regexp"
	"slices"
	"time"

	"countersign/protocol"
)

// Bounds and defaults of [approval] and [uv].
const (
	defaultApprover = "approver"
	defaultExpires  = 300 * time.Second
	maxExpires      = time.Hour
)

// NoAttestation is the format of a UV key that came without attestation.
const NoAttestation = "none"

var word = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

// Approval is what a level with a second approver waits for.
type Approval struct {
	Role    string        // that the second approver must have
	Expires time.Duration // after which the first approval is denied; whole seconds, 1 to 3600
}

// Approval returns how second approvals work, [approval] of the document.
func (p *Policy) Approval() Approval { return p.approval }

// AcceptsAttestation reports whether a UV key whose attestation is of this format
// counts as a factor. It is asked once, at enrolment.
func (p *Policy) AcceptsAttestation(format string) bool {
	return slices.Contains(p.attestation, format)
}

type rawApproval struct {
	Role    value `toml:"role"`
	Expires value `toml:"expires"`
}

type rawUV struct {
	Attestation value `toml:"attestation"`
}

func (c *checker) approval(r rawApproval) Approval {
	c.line, c.subject = 0, "approval: "
	a := Approval{Role: defaultApprover, Expires: c.duration(r.Expires, span{"expires", time.Second, maxExpires, defaultExpires})}
	if r.Role.raw == nil {
		return a
	}
	role, ok := r.Role.raw.(string)
	if !ok || !word.MatchString(role) {
		c.fail("role %s: want 1 to 32 lower-case letters, digits, dots, dashes or underscores", r.Role)
	}
	a.Role = role
	return a
}

func (c *checker) attestation(r rawUV) []string {
	c.line, c.subject = 0, "uv: "
	if r.Attestation.raw == nil {
		return nil
	}
	list, ok := r.Attestation.raw.([]any)
	if !ok {
		c.fail("attestation: want a list of formats such as [%q]", NoAttestation)
		return nil
	}
	var formats []string
	for _, one := range list {
		format, ok := one.(string)
		if !ok || !word.MatchString(format) {
			c.fail("attestation: %v is not the name of a format", one)
			continue
		}
		formats = append(formats, format)
	}
	return formats
}

// The protocol's own services that end without a decision (PROTOCOL.md §3): they
// need a signature, and more only if the client or the device asks for it.
var reserved = map[protocol.Service]service{
	protocol.ServiceDryRun: {id: protocol.ServiceDryRun, name: "dry-run", tiers: []tier{{level: 1}}, ttl: defaultTTL, lifetime: defaultLifetime},
	protocol.ServiceStatus: {id: protocol.ServiceStatus, name: "status", tiers: []tier{{level: 1}}, ttl: defaultTTL, lifetime: defaultLifetime},
}
