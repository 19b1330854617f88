package main

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"countersign/appliance/admin"
	"countersign/internal/cli"
	"countersign/protocol"
)

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func optionalDate(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return date(*t)
}

func number[T uint64 | int64 | uint8 | int](n T) string { return strconv.FormatInt(int64(n), 10) }

var clientTable = cli.Table[admin.Client]{
	{Title: "Name", Value: func(c admin.Client) string { return c.Name }},
	{Title: "ID", Value: func(c admin.Client) string { return c.ID }},
	{Title: "Status", Value: func(c admin.Client) string { return c.Status }},
	{Title: "Roles", Value: func(c admin.Client) string { return strings.Join(c.Roles, ",") }},
	{Title: "Password", Value: passwordWords},
	{Title: "Highest", Value: func(c admin.Client) string { return number(c.Highest) }},
	{Title: "Version", Value: func(c admin.Client) string { return number(c.Version) }},
	{Title: "Enrolled", Value: func(c admin.Client) string { return date(c.CreatedAt) }},
}

var deviceTable = cli.Table[admin.Device]{
	{Title: "Name", Value: func(d admin.Device) string { return d.Name }},
	{Title: "ID", Value: func(d admin.Device) string { return d.ID }},
	{Title: "Status", Value: func(d admin.Device) string { return d.Status }},
	{Title: "Display", Value: func(d admin.Device) string { return d.Display }},
	{Title: "Floor", Value: func(d admin.Device) string { return number(d.Floor) }},
	{Title: "Enrolled", Value: func(d admin.Device) string { return date(d.CreatedAt) }},
}

var keyTable = cli.Table[admin.Key]{
	{Title: "Key", Value: keyRef},
	{Title: "State", Value: keyStateWords},
	{Title: "Activated", Value: func(k admin.Key) string { return optionalDate(k.ActivatedAt) }},
	{Title: "Not before", Value: func(k admin.Key) string { return optionalDate(k.NotBefore) }},
	{Title: "Not after", Value: func(k admin.Key) string { return optionalDate(k.NotAfter) }},
	{Title: "ID", Value: func(k admin.Key) string { return cmp.Or(k.ID, "-") }},
}

var keyDetails = cli.Table[admin.Key]{
	{Title: "Key", Value: keyRef},
	{Title: "State", Value: keyStateWords},
	{Title: "Purpose", Value: func(k admin.Key) string { return k.Purpose }},
	{Title: "Algorithm", Value: func(k admin.Key) string { return k.Algorithm }},
	{Title: "ID", Value: func(k admin.Key) string { return k.ID }},
	{Title: "SPKI SHA-256", Value: func(k admin.Key) string { return cmp.Or(k.SPKI, "-") }},
	{Title: "Origin", Value: func(k admin.Key) string { return k.Origin }},
	{Title: "Tokens", Value: func(k admin.Key) string { return cmp.Or(strings.Join(k.Tokens, ","), "-") }},
	{Title: "Sealed for", Value: func(k admin.Key) string { return cmp.Or(k.SealedFor, "-") }},
	{Title: "Root", Value: func(k admin.Key) string { return number(k.Root) }},
	{Title: "Created", Value: func(k admin.Key) string { return date(k.CreatedAt) }},
	{Title: "Not before", Value: func(k admin.Key) string { return optionalDate(k.NotBefore) }},
	{Title: "Not after", Value: func(k admin.Key) string { return optionalDate(k.NotAfter) }},
	{Title: "Activated", Value: func(k admin.Key) string { return optionalDate(k.ActivatedAt) }},
	{Title: "Overlap until", Value: func(k admin.Key) string { return optionalDate(k.OverlapUntil) }},
	{Title: "Retired", Value: func(k admin.Key) string { return optionalDate(k.RetiredAt) }},
	{Title: "Suspended", Value: func(k admin.Key) string { return optionalDate(k.SuspendedAt) }},
	{Title: "Compromised", Value: func(k admin.Key) string { return optionalDate(k.CompromisedAt) }},
	{Title: "Destroyed", Value: func(k admin.Key) string { return optionalDate(k.DestroyedAt) }},
}

var findingTable = cli.Table[admin.Finding]{
	{Title: "Key", Value: func(f admin.Finding) string { return f.Key }},
	{Title: "Finding", Value: func(f admin.Finding) string {
		switch {
		case f.Unknown:
			return "unknown"
		case !f.Good:
			return "drift: " + strings.Join(f.Drift, ", ")
		}
		return "ok"
	}},
	{Title: "Origin", Value: func(f admin.Finding) string { return cmp.Or(f.Origin, "-") }},
	{Title: "Token", Value: func(f admin.Finding) string { return cmp.Or(f.Token, "-") }},
	{Title: "ID", Value: func(f admin.Finding) string { return f.ID }},
}

var dueTable = cli.Table[admin.KeyDue]{
	{Title: "Key", Value: func(d admin.KeyDue) string { return d.Name + "@" + number(d.Version) }},
	{Title: "Rotation", Value: func(d admin.KeyDue) string { return d.Standing }},
	{Title: "At", Value: func(d admin.KeyDue) string { return optionalDate(d.At) }},
	{Title: "Next", Value: func(d admin.KeyDue) string {
		if d.Next == 0 {
			return "-"
		}
		return d.Name + "@" + number(d.Next)
	}},
}

var recordsTable = cli.Table[admin.Renewal]{
	{Title: "Records", Value: func(r admin.Renewal) string {
		return number(r.Total-r.Left) + " of " + number(r.Total) + " under the mac and wrap keys in use"
	}},
	{Title: "Left because", Value: func(r admin.Renewal) string { return cmp.Or(r.Problem, "-") }},
}

func keyRef(k admin.Key) string { return k.Name + "@" + number(k.Version) }

// keyStateWords tells a deactivated key that still verifies from one that does not, and
// a destroyed one that is gone from one that its driver left behind.
func keyStateWords(k admin.Key) string {
	if k.State == "destroyed" && k.OnToken {
		return "destroyed (still on the token)"
	}
	if k.State == "deactivated" && k.Accepted {
		return "deactivated (verify only)"
	}
	return k.State
}

var recordTable = cli.Table[admin.Record]{
	{Title: "Seq", Value: func(r admin.Record) string { return number(r.Sequence) }},
	{Title: "At", Value: func(r admin.Record) string { return date(r.At) }},
	{Title: "Kind", Value: func(r admin.Record) string { return r.Kind }},
	{Title: "Subject", Value: func(r admin.Record) string { return r.Subject }},
	{Title: "Event", Value: eventWords},
	{Title: "Leaf", Value: func(r admin.Record) string { return r.Leaf[:min(len(r.Leaf), 16)] }},
}

var invitedTable = cli.Table[admin.Invited]{
	{Title: "Name", Value: func(i admin.Invited) string { return i.Name }},
	{Title: "Activation code", Value: func(i admin.Invited) string { return i.ActivationCode }},
	{Title: "Expires", Value: func(i admin.Invited) string { return date(i.ExpiresAt) }},
}

var statusTable = cli.Table[admin.Status]{
	{Title: "Trust domain", Value: func(s admin.Status) string { return s.TrustDomain }},
	{Title: "Root key", Value: func(s admin.Status) string { return s.RootKey }},
	{Title: "Policy", Value: func(s admin.Status) string { return "version " + number(s.PolicyVersion) + ", " + s.PolicyHash }},
	{Title: "HSM", Value: hsmWords},
	{Title: "Clients", Value: func(s admin.Status) string { return number(s.Counts.Clients) }},
	{Title: "Devices", Value: func(s admin.Status) string { return number(s.Counts.Devices) }},
	{Title: "Invitations", Value: func(s admin.Status) string { return number(s.Counts.Invitations) }},
	{Title: "Decisions", Value: func(s admin.Status) string { return number(s.Counts.Decisions) }},
	{Title: "Audit records", Value: func(s admin.Status) string { return number(s.Counts.Records) }},
	{Title: "Keys", Value: func(s admin.Status) string { return number(s.Counts.Keys) }},
}

func hsmWords(s admin.Status) string {
	words := []string{"not ready"}
	if s.HSM.Ready {
		words[0] = "ready"
	}
	return strings.Join(append(words, number(s.HSM.Workers)+" of "+number(s.HSM.Wanted)+" workers"), ", ")
}

// eventWords tell records of one kind apart: the event of a change, and what a
// decision came to.
func eventWords(r admin.Record) string {
	if event, ok := r.Fields["event"].(string); ok {
		return event
	}
	if performed, ok := r.Fields["performed"].(bool); ok {
		return map[bool]string{true: "performed", false: "not performed"}[performed]
	}
	reason, ok := r.Fields["reason"].(float64)
	code := protocol.Code(reason)
	switch {
	case !ok:
		return "-"
	case code == 0:
		return "approved"
	case code == protocol.CodePending:
		return "pending"
	case r.Kind == "refused":
		return "refused " + number(int64(code))
	default:
		return "denied " + number(int64(code))
	}
}

func passwordWords(c admin.Client) string {
	switch p := c.Password; {
	case !p.Set:
		return "none"
	case p.Locked && p.LockedUntil == nil:
		return "locked"
	case p.Locked:
		return "locked until " + date(*p.LockedUntil)
	case p.Wrong > 0:
		return "set, " + number(int64(p.Wrong)) + " wrong"
	default:
		return "set"
	}
}
