package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"countersign/internal/tomldoc"
	"countersign/protocol"
)

// Kind is the kind of a change request, as in [quorum] and in the request itself.
type Kind string

// The kinds of change that wait for a quorum.
const (
	KeyDestroy   Kind = "key.destroy"
	KeyBackup    Kind = "key.backup"
	KeyRestore   Kind = "key.restore"
	RootRotate   Kind = "root.rotate" // also activation and cancellation
	DeviceInvite Kind = "device.invite"
	AdminAdd     Kind = "admin.add" // also resume
	AdminRevoke  Kind = "admin.revoke"
	PolicyApply  Kind = "policy.apply"
)

var kinds = []Kind{KeyDestroy, KeyBackup, KeyRestore, RootRotate, DeviceInvite, AdminAdd, AdminRevoke, PolicyApply}

// Kinds returns all kinds of change.
func Kinds() []Kind { return slices.Clone(kinds) }

// ParseKind parses the text of [Kind.String].
func ParseKind(s string) (Kind, error) {
	if !slices.Contains(kinds, Kind(s)) {
		return "", fmt.Errorf("kind of change %q: want one of %v", s, kinds)
	}
	return Kind(s), nil
}

func (k Kind) String() string { return string(k) }

// Local is the signer name of the appliance's admin socket. Everyone who can connect to it counts as
// this one identity.
const Local = "local"

// maxQuorum bounds a quorum, in administrators.
const maxQuorum = 16

// Quorum returns the requirement for a change of this kind: the document's, or one administrator.
func (p *Policy) Quorum(k Kind) Requirement {
	return Requirement{Administrators: max(p.quorum[k], 1)}
}

// Evasion is a quorum that fewer administrators can circumvent.
type Evasion struct {
	Kind  Kind // requires Takes administrators
	By    Kind // requires Fewer, and can lower the quorum or add administrators who sign
	Takes int
	Fewer int
}

func (e Evasion) String() string {
	return fmt.Sprintf("%s takes %d administrators, and %d can change that by %s", e.Kind, e.Takes, e.Fewer, e.By)
}

// Evasions returns the quorums greater than the quorum of policy.apply or of admin.add, whichever is
// smaller.
func (p *Policy) Evasions() []Evasion {
	by := PolicyApply
	if p.Quorum(AdminAdd).Administrators < p.Quorum(PolicyApply).Administrators {
		by = AdminAdd
	}
	fewer := p.Quorum(by).Administrators
	var all []Evasion
	for _, k := range kinds {
		if takes := p.Quorum(k).Administrators; takes > fewer {
			all = append(all, Evasion{Kind: k, By: by, Takes: takes, Fewer: fewer})
		}
	}
	return all
}

// CountsLocal reports whether the admin socket counts as an administrator.
func (p *Policy) CountsLocal() bool { return !p.keysOnly }

// quorums reads [quorum]. Kinds may be quoted or not: TOML reads these as a key with a dot and as a
// nested table.
func (c *checker) quorums(raw map[string]value, keys []tomldoc.Key) (map[Kind]int, bool) {
	found, keysOnly := map[Kind]int{}, false
	flat := c.flattened(raw)
	for _, name := range slices.Sorted(maps.Keys(flat)) {
		c.subject, c.line = "quorum: ", lineOf(keys, "quorum."+name)
		v := flat[name]
		if name == Local {
			counts, ok := v.raw.(bool)
			if !ok {
				c.fail("local: want true or false, found %s", v)
			}
			keysOnly = !counts
			continue
		}
		kind, err := ParseKind(name)
		if err != nil {
			c.fail("%v, or local", err)
			continue
		}
		n, ok := v.raw.(int64)
		if !ok || n < 1 || n > maxQuorum {
			c.fail("%s: want 1 to %d administrators, found %s", kind, maxQuorum, v)
		}
		found[kind] = int(n)
	}
	return found, keysOnly
}

func (c *checker) flattened(raw map[string]value) map[string]value {
	flat := map[string]value{}
	put := func(name string, v value) {
		if _, twice := flat[name]; twice {
			c.subject, c.line = "quorum: ", 0
			c.fail("%s appears twice", name)
		}
		flat[name] = v
	}
	for name, v := range raw {
		table, ok := v.raw.(map[string]any)
		if !ok {
			put(name, v)
		}
		for verb, n := range table {
			put(name+"."+verb, value{n})
		}
	}
	return flat
}

func lineOf(keys []tomldoc.Key, name string) int {
	for _, k := range keys {
		if strings.Join(k.Path, ".") == name {
			return k.Line
		}
	}
	return 0
}

// Bounds and defaults of [approval] and [uv].
const (
	defaultApprover = "approver"
	defaultExpires  = 300 * time.Second
	maxExpires      = time.Hour
)

// NoAttestation is the attestation format of a UV key that has none.
const NoAttestation = "none"

var word = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

// Approval is how a level with a second approver works.
type Approval struct {
	Role    string        // required of the second approver
	Expires time.Duration // after which the first approval is denied; whole seconds, 1 to 3600
}

// Approval returns the document's [approval].
func (p *Policy) Approval() Approval { return p.approval }

// AcceptsAttestation reports whether a UV key with this attestation format counts as a factor.
// Enrolment asks once.
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

// The protocol's own services that end without a decision (PROTOCOL.md §3). They need a signature,
// and more only if the client or the device requests it.
var reserved = map[protocol.Service]service{
	protocol.ServiceDryRun: {id: protocol.ServiceDryRun, name: "dry-run", tiers: []tier{{level: 1}}, ttl: defaultTTL, lifetime: defaultLifetime},
	protocol.ServiceStatus: {id: protocol.ServiceStatus, name: "status", tiers: []tier{{level: 1}}, ttl: defaultTTL, lifetime: defaultLifetime},
}
