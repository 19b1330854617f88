package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
)

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func optionalDate(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return date(*t)
}

func number[T uint64 | int64 | uint8 | int](n T) string { return strconv.FormatInt(int64(n), 10) }

var clientTable = cli.Table[adminapi.Client]{
	{Title: "Name", Value: func(c adminapi.Client) string { return c.Name }},
	{Title: "ID", Value: func(c adminapi.Client) string { return cmp.Or(c.ID, "-") }},
	{Title: "Status", Value: func(c adminapi.Client) string { return c.Status }},
	{Title: "Roles", Value: func(c adminapi.Client) string { return cmp.Or(strings.Join(c.Roles, ", "), "-") }},
	{Title: "Password", Value: passwordWords},
	{Title: "Highest counter", Value: highestWords},
	{Title: "Version", Value: func(c adminapi.Client) string { return number(c.Version) }},
	{Title: "Enrolled", Value: func(c adminapi.Client) string { return enrolledWords(c.Status, c.CreatedAt, c.ExpiresAt) }},
}

// clientDetails are the columns of one client: also its keys.
var clientDetails = append(slices.Clone(clientTable), cli.Table[adminapi.Client]{
	{Title: "Signing key", Value: func(c adminapi.Client) string { return cmp.Or(c.SigningKey, "-") }},
	{Title: "UV key", Value: uvWords},
}...)

// uvWords says whether a UV key counts: only one whose attestation the policy accepted gives the role.
func uvWords(c adminapi.Client) string {
	switch {
	case c.UVKey == "":
		return "-"
	case slices.Contains(c.Roles, "uv"):
		return c.UVKey + ", attested: it counts as a factor"
	}
	return c.UVKey + ", not attested: it does not count as a factor"
}

var deviceTable = cli.Table[adminapi.Device]{
	{Title: "Name", Value: func(d adminapi.Device) string { return d.Name }},
	{Title: "ID", Value: func(d adminapi.Device) string { return cmp.Or(d.ID, "-") }},
	{Title: "Status", Value: func(d adminapi.Device) string { return d.Status }},
	{Title: "Display", Value: func(d adminapi.Device) string { return d.Display }},
	{Title: "Floor", Value: func(d adminapi.Device) string { return number(d.Floor) }},
	{Title: "Enrolled", Value: func(d adminapi.Device) string { return enrolledWords(d.Status, d.CreatedAt, d.ExpiresAt) }},
}

// deviceDetails are the columns of one device: also the name in its certificate.
var deviceDetails = append(slices.Clone(deviceTable), cli.Table[adminapi.Device]{
	{Title: "SPIFFE ID", Value: func(d adminapi.Device) string { return cmp.Or(d.SPIFFEID, "-") }},
	{Title: "Version", Value: func(d adminapi.Device) string { return number(d.Version) }},
}...)

// enrolledWords returns the date of an enrolment, or the date until which an activation code can be used.
func enrolledWords(status string, created time.Time, expires *time.Time) string {
	switch {
	case status == adminapi.StatusWithdrawn:
		return "code withdrawn"
	case expires != nil:
		return "code until " + date(*expires)
	}
	return date(created)
}

var keyTable = cli.Table[adminapi.Key]{
	{Title: "Key", Value: keyRef},
	{Title: "State", Value: keyStateWords},
	{Title: "Activated", Value: activatedWords},
	{Title: "Not before", Value: func(k adminapi.Key) string { return optionalDate(k.NotBefore) }},
	{Title: "Not after", Value: func(k adminapi.Key) string { return optionalDate(k.NotAfter) }},
	{Title: "ID", Value: func(k adminapi.Key) string { return cmp.Or(k.ID, "-") }},
}

var keyDetails = cli.Table[adminapi.Key]{
	{Title: "Key", Value: keyRef},
	{Title: "State", Value: keyStateWords},
	{Title: "Purpose", Value: func(k adminapi.Key) string { return k.Purpose }},
	{Title: "Algorithm", Value: func(k adminapi.Key) string { return k.Algorithm }},
	{Title: "ID", Value: func(k adminapi.Key) string { return k.ID }},
	{Title: "SPKI SHA-256", Value: func(k adminapi.Key) string { return cmp.Or(k.SPKI, "-") }},
	{Title: "Origin", Value: func(k adminapi.Key) string { return k.Origin }},
	{Title: "Tokens", Value: func(k adminapi.Key) string { return cmp.Or(strings.Join(k.Tokens, ","), "-") }},
	{Title: "Sealed for", Value: func(k adminapi.Key) string { return cmp.Or(k.SealedFor, "-") }},
	{Title: "Root", Value: func(k adminapi.Key) string { return number(k.Root) }},
	{Title: "Created", Value: func(k adminapi.Key) string { return date(k.CreatedAt) }},
	{Title: "Not before", Value: func(k adminapi.Key) string { return optionalDate(k.NotBefore) }},
	{Title: "Not after", Value: func(k adminapi.Key) string { return optionalDate(k.NotAfter) }},
	{Title: "Activated", Value: activatedWords},
	{Title: "Overlap until", Value: func(k adminapi.Key) string { return optionalDate(k.OverlapUntil) }},
	{Title: "Retired", Value: func(k adminapi.Key) string { return optionalDate(k.RetiredAt) }},
	{Title: "Suspended", Value: func(k adminapi.Key) string { return optionalDate(k.SuspendedAt) }},
	{Title: "Compromised", Value: func(k adminapi.Key) string { return optionalDate(k.CompromisedAt) }},
	{Title: "Destroyed", Value: func(k adminapi.Key) string { return optionalDate(k.DestroyedAt) }},
}

var findingTable = cli.Table[adminapi.Finding]{
	{Title: "Key", Value: func(f adminapi.Finding) string { return f.Key }},
	{Title: "Finding", Value: func(f adminapi.Finding) string {
		switch {
		case f.Unknown:
			return "unknown"
		case !f.Good:
			return "differs: " + strings.Join(f.Drift, ", ")
		}
		return "ok"
	}},
	{Title: "Origin", Value: func(f adminapi.Finding) string { return cmp.Or(f.Origin, "-") }},
	{Title: "Token", Value: func(f adminapi.Finding) string { return cmp.Or(f.Token, "-") }},
	{Title: "ID", Value: func(f adminapi.Finding) string { return f.ID }},
}

var dueTable = cli.Table[adminapi.KeyDue]{
	{Title: "Key", Value: func(d adminapi.KeyDue) string { return d.Name + "@" + number(d.Version) }},
	{Title: "Rotation", Value: func(d adminapi.KeyDue) string { return d.Standing }},
	{Title: "At", Value: func(d adminapi.KeyDue) string { return optionalDate(d.At) }},
	{Title: "Next", Value: func(d adminapi.KeyDue) string {
		if d.Next == 0 {
			return "-"
		}
		return d.Name + "@" + number(d.Next)
	}},
}

var recordsTable = cli.Table[adminapi.Renewal]{
	{Title: "Records", Value: func(r adminapi.Renewal) string {
		return number(r.Total-r.Left) + " of " + number(r.Total) + " under the mac and wrap keys in use"
	}},
	{Title: "Left because", Value: func(r adminapi.Renewal) string { return cmp.Or(r.Problem, "-") }},
}

func keyRef(k adminapi.Key) string { return k.Name + "@" + number(k.Version) }

// activatedWords distinguishes a date in the future, at which the key activates itself.
func activatedWords(k adminapi.Key) string {
	if k.ActivatedAt != nil && k.ActivatedAt.After(time.Now()) {
		return "planned for " + date(*k.ActivatedAt)
	}
	return optionalDate(k.ActivatedAt)
}

// keyStateWords distinguishes a deactivated key that still verifies from one that does not, and a destroyed key that
// was deleted from one that its driver left on the token.
func keyStateWords(k adminapi.Key) string {
	if k.State == "destroyed" && k.OnToken {
		return "destroyed (still on the token)"
	}
	if k.State == "deactivated" && k.Accepted {
		return "deactivated (verify only)"
	}
	return k.State
}

var invitedTable = cli.Table[adminapi.Invited]{
	{Title: "Name", Value: func(i adminapi.Invited) string { return i.Name }},
	{Title: "Activation code", Value: func(i adminapi.Invited) string { return i.ActivationCode }},
	{Title: "Expires", Value: func(i adminapi.Invited) string { return date(i.ExpiresAt) }},
	{Title: "Gives", Value: func(i adminapi.Invited) string {
		if i.Kind == "device" {
			return fmt.Sprintf("display name %q, floor level %d", i.Display, i.Floor)
		}
		return "roles: " + cmp.Or(strings.Join(i.Roles, ", "), "none")
	}},
}

var statusTable = cli.Table[adminapi.Status]{
	{Title: "Trust domain", Value: func(s adminapi.Status) string { return s.TrustDomain }},
	{Title: "Root key", Value: func(s adminapi.Status) string { return s.RootKey }},
	{Title: "Policy", Value: func(s adminapi.Status) string { return "version " + number(s.PolicyVersion) + ", " + s.PolicyHash }},
	{Title: "HSM", Value: hsmWords},
	{Title: "Clients", Value: func(s adminapi.Status) string { return number(s.Counts.Clients) }},
	{Title: "Devices", Value: func(s adminapi.Status) string { return number(s.Counts.Devices) }},
	{Title: "Open codes", Value: func(s adminapi.Status) string { return number(s.OpenCodes) }},
	{Title: "Decisions", Value: func(s adminapi.Status) string { return number(s.Counts.Decisions) }},
	{Title: "Dry runs, questions", Value: func(s adminapi.Status) string { return number(s.Counts.Questions) }},
	{Title: "Audit records", Value: func(s adminapi.Status) string { return number(s.Counts.Records) }},
	{Title: "Keys", Value: func(s adminapi.Status) string { return number(s.Counts.Keys) }},
}

func hsmWords(s adminapi.Status) string {
	words := []string{"not ready"}
	if s.HSM.Ready {
		words[0] = "ready"
	}
	return strings.Join(append(words, number(s.HSM.Workers)+" of "+number(s.HSM.Wanted)+" workers"), ", ")
}

func highestWords(c adminapi.Client) string {
	if c.Highest < 0 {
		return "-"
	}
	return number(c.Highest)
}

func passwordWords(c adminapi.Client) string {
	switch p := c.Password; {
	case !p.Set:
		return "none"
	case p.Locked && p.LockedUntil == nil:
		return "locked"
	case p.Locked:
		return "locked until " + date(*p.LockedUntil)
	case p.Wrong > 0:
		return "set, " + number(int64(p.Wrong)) + " wrong in a row"
	default:
		return "set"
	}
}
