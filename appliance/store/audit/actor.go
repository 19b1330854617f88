package audit

import (
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
