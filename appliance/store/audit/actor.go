package audit

import (
	"cmp"
	"context"
	"os/user"
	"strconv"
)

// Actor is who made an administrative change. The zero value is the appliance itself.
type Actor struct {
	uid      *uint32
	user     string // of uid; "" if the host does not know it
	operator string // the administrator whose signature executed the change
	role     string // of an actor without a uid
}

// The actors without a uid.
var (
	// Appliance is the daemon: it finishes what an administrator asked for.
	Appliance = Actor{role: "appliance"}
	// Schedule takes the steps of the keys by itself.
	Schedule = Actor{role: "schedule"}
	// Device renews its own certificate.
	Device = Actor{role: "device"}
	// Holder enrols with an activation code.
	Holder = Actor{role: "holder of an activation code"}
)

// UserOf returns the actor with a user id of this host.
func UserOf(uid uint32) Actor {
	a := Actor{uid: &uid}
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		a.user = u.Username
	}
	return a
}

// With returns the actor with the operator whose signature it hands in.
func (a Actor) With(operator string) Actor {
	a.operator = operator
	return a
}

// String returns the name of the operator, of the user or of the part of the appliance.
func (a Actor) String() string {
	switch name := cmp.Or(a.operator, a.user); {
	case name != "":
		return name
	case a.uid != nil:
		return "uid " + strconv.FormatUint(uint64(*a.uid), 10)
	}
	return cmp.Or(a.role, Appliance.role)
}

// fields returns the actor as a record has it: "uid" and "user" of the peer of the admin socket,
// "operator" of the signature that executed the change, or "role".
func (a Actor) fields() map[string]any {
	f := map[string]any{}
	if a.uid != nil {
		f["uid"] = *a.uid
	}
	for name, text := range map[string]string{"user": a.user, "operator": a.operator, "role": a.role} {
		if text != "" {
			f[name] = text
		}
	}
	if len(f) == 0 {
		return Appliance.fields()
	}
	return f
}

// actorKey is the key of an Actor in a context.
type actorKey struct{}

// By returns a context in which an actor acts.
func By(ctx context.Context, a Actor) context.Context { return context.WithValue(ctx, actorKey{}, a) }

// ActorOf returns the actor of a context, or [Appliance] if it has none.
func ActorOf(ctx context.Context) Actor {
	a, ok := ctx.Value(actorKey{}).(Actor)
	if !ok {
		return Appliance
	}
	return a
}

// Act is [NewRecord] for an administrative change: it adds the field "actor", the actor of ctx.
func Act(ctx context.Context, kind, subject string, fields map[string]any) Record {
	with := map[string]any{"actor": ActorOf(ctx).fields()}
	for name, value := range fields {
		with[name] = value
	}
	return NewRecord(kind, subject, with)
}

// Acted describes an administrative change, from its record.
type Acted struct {
	Verb   string         // what was done: "suspended", "rotate", "executed"
	Target string         // the subject of the record
	Actor  map[string]any // "uid" and "user", "operator", or "role"
	Fields map[string]any // all fields of the record, as [Record.Words] returns them
}

// Act returns what a record of an administrative change says; ok is false for any other record.
func (r Record) Act() (a Acted, ok bool) {
	switch r.Kind {
	case KindDecision, KindRefused, KindFinal, KindSettled, KindFailures, KindRepeats, KindOutcome:
		return a, false // the records of requests, which are many
	}
	a = Acted{Target: r.Subject, Fields: r.Words()}
	a.Actor, ok = a.Fields["actor"].(map[string]any)
	a.Verb, _ = a.Fields["event"].(string)
	return a, ok
}
