package hostile

import (
	"context"
	"errors"
	"math"

	"countersign/appliance/change"
	"countersign/appliance/enrol"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/recovery"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/softhsm-test/hostile/world"
)

// administration is what administrators do by name, and what takes their votes.
var administration = []operation{
	{"suspend rob", client("rob", store.Suspended, "rob"), nil},
	{"revoke rob", client("rob", store.Revoked, "rob"), nil},
	{"revoke bob", client("bob", store.Revoked, "bob"), nil},
	{"resume sam", client("sam", store.Active, "ruth", "mallory"), nil},
	{"revoke the safe", revokeDevice("safe"), nil},
	{"unlock dora", unlock, paid("dora", "5000 EUR", 2)},
	{"suspend administrator cat", suspendAdmin("cat"), inForce[:1]},
	{"start", standing, inForce},
	{"start, and go on with what was taken", resume, append([]grant{{what: "door-4 is invited"}}, inForce...)},
	{"ann signs what is open", sign("ann", "open"), append([]grant{{what: "open is executed"}, {what: "door-3 is invited"}}, inForce...)},
	{"ann signs the policy", sign("ann", "policy"), append([]grant{{what: "policy is executed"}, {what: "policy 3, another one"}}, inForce...)},
	{"ann signs the new administrator", sign("ann", "admin"), append([]grant{{what: "admin is executed"}, {what: "administrator eve with another key"}}, inForce...)},
	{"suspended ben signs", sign("ben", "open"), inForce},
	{"stranger mallory signs", sign("mallory", "open"), inForce},
	{"local signs again", sign("", "open"), inForce},
	{"ann signs what was withdrawn", sign("ann", "withdrawn"), inForce},
	{"ann signs what is expired", sign("ann", "expired"), inForce},
	{"ann signs what failed", sign("ann", "failed"), inForce},
	{"ask for a policy", ask(func(s *scene) change.Draft { return rules.Draft(s.Lenient) }), inForce},
	{"ask for a key to be destroyed", ask(func(*scene) change.Draft {
		return change.Draft{Kind: policy.KeyDestroy, Parameters: change.Parameters{"name": keyring.KEM, "version": uint64(1)}}
	}), inForce},
	{"ask for a device", inviteDevice, inForce},
	{"key backup without votes", backUp(true), nil},
	{"key backup with votes", backUp(false), []grant{{what: "a backup of the keys"}}},
	{"rotate decision", step(keyplan.Rotate, keyring.Decision), nil},
	{"activate decision", step(keyplan.Activate, keyring.Decision), nil},
	{"retire mac", step(keyplan.Retire, keyring.MAC), nil},
	{"rotate root without votes", step(keyplan.Rotate, keyring.Root), nil},
}

// inForce is what stands in the untouched world after every one of them, beside the policy.
var inForce = []grant{
	{what: "administrator ann"}, {what: "administrator cat"},
}

// client sets the status of a client by name. Of those who may not, none may authorize
// after it said that it was done.
func client(name string, to store.Status, may ...string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		if _, err := s.Parties.SetClientStatus(ctx, name, to); err != nil {
			return err
		}
		for _, who := range may {
			p := *s.Phones[who]
			d, err := s.Apply(ctx, &p, door)
			if err != nil || s.Approve(ctx, d) != nil {
				continue
			}
			s.decided(who+", "+to.String(), d, d.Answer)
		}
		return nil
	}
}

func revokeDevice(name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		if _, err := s.Parties.SetDeviceStatus(ctx, name, store.Revoked); err != nil {
			return err
		}
		if renew(name)(s, ctx) == nil {
			s.grant("%s is renewed after its revocation", name)
		}
		return nil
	}
}

func unlock(s *scene, ctx context.Context) error {
	if _, err := s.Parties.Unlock(ctx, "dora"); err != nil {
		return err
	}
	return byPhone("dora", pay(5000))(s, ctx)
}

func suspendAdmin(name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		if _, err := s.Requests.SuspendAdmin(ctx, name); err != nil {
			return err
		}
		return sign(name, "open")(s, ctx)
	}
}

// strictVersion is the version of the policy in force.
const strictVersion = 2

// standing grants the administrators in force, and a policy other than the expected one.
func standing(s *scene, ctx context.Context) error { return stands(s, ctx, strictVersion) }

// standingRestored is standing after a restore: that applies the policy of the backup again, as the version after the
// one that the database claims to have.
func standingRestored(s *scene, ctx context.Context) error { return stands(s, ctx, math.MaxUint64) }

// stands is standing, with the latest version that the expected policy may have.
func stands(s *scene, ctx context.Context, latest uint64) error {
	p, err := s.Rules.Policy(ctx)
	if err != nil {
		return err
	}
	switch {
	case p.Hash != s.Strict:
		s.grant("policy %d, another one", p.Version)
	case p.Version < strictVersion, p.Version > latest:
		s.grant("policy %d, the strict one", p.Version)
	}
	all, err := s.Quorum.Admins(ctx)
	if err != nil {
		return err
	}
	for _, one := range all {
		switch {
		case one.Status != store.Active:
		case s.Operators[one.Name].Public != one.Key:
			s.grant("administrator %s with another key", one.Name)
		default:
			s.grant("administrator %s", one.Name)
		}
	}
	return nil
}

// invited grants each device whose code is good now, by trying it.
func (s *scene) invited(ctx context.Context) {
	for _, name := range []string{"door-1", "door-2", "door-3", "door-4"} {
		if _, err := s.Enrol.Device(ctx, world.DeviceRequest(s.Codes[name])); err == nil {
			s.grant("%s is invited", name)
		}
	}
}

// after restarts the appliance and judges the state in force. A change made in the rows takes
// effect at the latest then.
func (s *scene) after(ctx context.Context) error {
	if err := s.reopen(ctx); err != nil {
		return err
	}
	s.invited(ctx)
	return standing(s, ctx)
}

func resume(s *scene, ctx context.Context) error {
	id := s.Changes["taken"].Hash.ID()
	worked := s.Work(ctx, func() bool {
		c, err := s.Store.Change(ctx, id)
		return err != nil || c.State != store.ChangeTaken
	})
	return errors.Join(worked, s.after(ctx))
}

func sign(who, which string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		c := s.Changes[which]
		var raw []byte
		var err error
		if who != "" {
			if raw, err = s.Operators[who].Sign(ctx, c.Hash); err != nil {
				return err
			}
		}
		got, err := s.Requests.Sign(ctx, c.Hash.ID(), raw)
		if err == nil && got.State == store.ChangeExecuted {
			s.grant("%s is executed", which)
		}
		if which == "open" {
			err = errors.Join(err, s.alsoSign(ctx))
		}
		return errors.Join(err, s.after(ctx))
	}
}

// alsoSign has mallory sign the others that are open.
func (s *scene) alsoSign(ctx context.Context) error {
	for _, which := range []string{"policy", "admin"} {
		raw, err := s.Operators["mallory"].Sign(ctx, s.Changes[which].Hash)
		if err != nil {
			return err
		}
		if got, err := s.Requests.Sign(ctx, s.Changes[which].Hash.ID(), raw); err == nil && got.State == store.ChangeExecuted {
			s.grant("%s is executed", which)
		}
	}
	return nil
}

func ask(what func(*scene) change.Draft) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		c, err := s.Requests.Ask(ctx, what(s))
		if err == nil && c.State == store.ChangeExecuted {
			s.grant("%s is executed", c.Kind)
		}
		return errors.Join(err, s.after(ctx))
	}
}

func inviteDevice(s *scene, ctx context.Context) error {
	code, _, err := s.Enrol.Invite(ctx, enrol.Invite{Kind: store.KindDevice, Name: "door-5"})
	if err == nil {
		s.grant("door-5 is invited")
	}
	if raw, enrolErr := s.Enrol.Device(ctx, world.DeviceRequest(code)); enrolErr == nil && raw != nil {
		s.grant("door-5 is enrolled")
	}
	return errors.Join(err, s.after(ctx))
}

func backUp(partial bool) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		return s.Recovery.BackUpKeys(ctx, recovery.BackUp{Partial: partial}, func(made recovery.KeyBackup) error {
			if made.File != nil {
				s.grant("a backup of the keys")
			}
			return nil
		})
	}
}

// step takes a step of a key's life. Afterwards only keys that were trusted before, or that the
// true root certified, may be trusted and used.
func step(verb keyplan.Verb, name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		_, stepped := s.Appliance.Keys.Take(ctx, keyplan.Step{Verb: verb, Name: name})
		if stepped == nil && name == keyring.Root {
			s.grant("a step of the root without votes")
		}
		p := *s.Phones["alice"]
		d, err := s.Apply(ctx, &p, world.Ask{Service: world.Door})
		if err != nil {
			return errors.Join(stepped, err)
		}
		err = s.Approve(ctx, d)
		if len(d.Answer.Decision()) > 0 {
			if _, _, bad := s.verify(d, d.Answer.Decision()); bad != nil {
				err = bad // it is not believed: a denial of service
			}
		}
		if _, bad := s.Verify(s.Hash()); bad != nil {
			s.grant("a root to which the true root does not lead")
		}
		return errors.Join(stepped, err)
	}
}
