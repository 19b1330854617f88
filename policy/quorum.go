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

// The kinds of change that wait for a quorum: everything that grants something.
const (
	KeyRotate     Kind = "key.rotate" // also the first version of a key
	KeyActivate   Kind = "key.activate"
	KeyRetire     Kind = "key.retire"
	KeyResume     Kind = "key.resume"
	KeyDestroy    Kind = "key.destroy"
	KeyBackup     Kind = "key.backup"
	RootRotate    Kind = "root.rotate" // every step of the root
	StoreBackup   Kind = "store.backup"
	ClientInvite  Kind = "client.invite"
	ClientReplace Kind = "client.replace"
	ClientResume  Kind = "client.resume"
	ClientUnlock  Kind = "client.unlock"
	DeviceInvite  Kind = "device.invite"
	DeviceReplace Kind = "device.replace"
	DeviceResume  Kind = "device.resume"
	AdminAdd      Kind = "admin.add" // also resume
	AdminRevoke   Kind = "admin.revoke"
	PolicyApply   Kind = "policy.apply"
)

var kinds = []Kind{
	KeyRotate, KeyActivate, KeyRetire, KeyResume, KeyDestroy, KeyBackup, RootRotate, StoreBackup,
	ClientInvite, ClientReplace, ClientResume, ClientUnlock, DeviceInvite, DeviceReplace, DeviceResume,
	AdminAdd, AdminRevoke, PolicyApply,
}

// Kinds returns all kinds of change.
func Kinds() []Kind { return slices.Clone(kinds) }

// keyRestore was a kind of change that no release carried out.
const keyRestore Kind = "key.restore"

// ParseKind parses the text of [Kind.String].
func ParseKind(s string) (Kind, error) {
	if Kind(s) == keyRestore {
		return "", fmt.Errorf("kind of change %q no longer exists: delete the line", s)
	}
	if !slices.Contains(kinds, Kind(s)) {
		return "", fmt.Errorf("kind of change %q: want one of %v", s, kinds)
	}
	return Kind(s), nil
}

func (k Kind) String() string { return string(k) }

// invitations maps each kind that replaces a party to the kind that invites one.
var invitations = map[Kind]Kind{ClientReplace: ClientInvite, DeviceReplace: DeviceInvite}

// Local is the signer name of the appliance's admin socket. Everyone who can connect to it counts as
// this one identity.
const Local = "local"

// maxQuorum bounds a quorum, in administrators.
const maxQuorum = 16

// Quorum returns the requirement for a change of this kind: the document's, or one administrator. A
// replacement takes at least what an invitation takes, because it enrols a party just the same.
func (p *Policy) Quorum(k Kind) Requirement {
	return Requirement{Administrators: max(p.quorum[k], p.quorum[invitations[k]], 1)}
}

// QuorumRulingOut returns the requirement for a change of this kind that ends the acceptance of other versions
// of a key, or makes a version that will: at least what it takes to retire one.
func (p *Policy) QuorumRulingOut(k Kind) Requirement {
	return Requirement{Administrators: max(p.Quorum(k).Administrators, p.Quorum(KeyRetire).Administrators)}
}

// QuorumResuming returns the requirement to resume an administrator while so many others can countersign: the quorum of
// admin.add, or all who are left if they are fewer. A suspension can thus always be taken back.
func (p *Policy) QuorumResuming(left int) Requirement {
	return Requirement{Administrators: max(min(p.Quorum(AdminAdd).Administrators, left), 1)}
}

// Unattended reports whether a kind of change needs no vote at all: the document says 0. It may say
// so of [StoreBackup] alone, so that a copy can be made every night with local = false.
func (p *Policy) Unattended(k Kind) bool {
	n, listed := p.quorum[k]
	return k == StoreBackup && listed && n == 0
}

// scheduled lists the kinds of the steps that a schedule takes by itself.
var scheduled = []Kind{KeyRotate, KeyActivate, KeyRetire}

// AgainstSchedule returns the kinds whose quorum a schedule of the keys would evade, because a schedule
// has no vote.
func (p *Policy) AgainstSchedule() []Kind {
	return slices.DeleteFunc(slices.Clone(scheduled), func(k Kind) bool { return p.Quorum(k).Administrators == 1 })
}

// Evasion is a quorum that fewer administrators can circumvent.
type Evasion struct {
	Kind  Kind // requires Takes administrators
	By    Kind // requires Fewer, and can lower the quorum, add administrators who sign, or make the change come by itself
	Takes int
	Fewer int
}

func (e Evasion) String() string {
	if e.By == KeyRotate {
		return fmt.Sprintf("%s takes %d administrators, and a version that %d can make by %s comes into use by itself, at its date",
			e.Kind, e.Takes, e.Fewer, e.By)
	}
	return fmt.Sprintf("%s takes %d administrators, and %d can change that by %s", e.Kind, e.Takes, e.Fewer, e.By)
}

// Evasions returns the quorums greater than the quorum of policy.apply or of admin.add, whichever is
// smaller, and the quorum of key.activate if it is greater than the quorum of key.rotate: a version that was
// certified comes into use when the one in use ends, without an activation.
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
	if activate, rotate := p.Quorum(KeyActivate).Administrators, p.Quorum(KeyRotate).Administrators; activate > rotate {
		all = append(all, Evasion{Kind: KeyActivate, By: KeyRotate, Takes: activate, Fewer: rotate})
	}
	return all
}

// NeedsAll returns the kinds that take all administrators, if so many can countersign: no such change can be made while
// one of them is away or suspended. It leaves out kinds that take one.
func (p *Policy) NeedsAll(able int) []Kind {
	return slices.DeleteFunc(Kinds(), func(k Kind) bool {
		n := p.Quorum(k).Administrators
		return n != able || n == 1
	})
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
		if c.stored && Kind(name) == keyRestore {
			c.ignore("[quorum] key.restore: this kind no longer exists: delete the line")
			continue
		}
		kind, err := ParseKind(name)
		if err != nil {
			c.fail("%v, or local", err)
			continue
		}
		n, ok := v.raw.(int64)
		least := int64(1)
		if kind == StoreBackup {
			least = 0
		}
		if !ok || n < least || n > maxQuorum {
			c.fail("%s: want %d to %d administrators, found %s", kind, least, maxQuorum, v)
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

// Unverified is the attestation format of a UV key whose attestation the appliance could not verify.
// No policy accepts it.
const Unverified = "unverified"

// reservedRole is the role of every client whose UV key counts as a factor.
const reservedRole = "uv"

// noRole is a role that no client can have.
const noRole = "-"

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
	switch a.Role = role; {
	case role != reservedRole:
	case c.stored:
		a.Role = noRole
		c.ignore("[approval] role \"uv\": every phone with a UV key has it, so it approves nothing: name another role")
	default:
		c.fail("role %q is reserved: every phone with a UV key has it", role)
	}
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
		if format == Unverified && c.stored {
			c.ignore("[uv] attestation \"unverified\": such keys are not accepted: delete the word")
			continue
		}
		if format == Unverified {
			c.fail("attestation: %q is reserved for attestations that the appliance could not verify", format)
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
