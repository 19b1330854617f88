package hostile

import (
	"context"
	"errors"
	"slices"

	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/softhsm-test/harness/phone"
	"countersign/softhsm-test/hostile/world"
)

// operation is one use of the appliance. The rights that it grants go to the scene; its error is a
// refusal. honest lists the rights that it grants in the untouched world: no other right may be
// granted in an altered one.
type operation struct {
	name   string
	do     func(*scene, context.Context) error
	honest []grant
}

const approved1 = "approved: nothing of 100 at gate by decision@2"

// groups are the columns of the table.
var groups = []struct {
	name       string
	operations []operation
}{
	{"authorize", authorizations},
	{"again", repeats},
	{"limits", payments},
	{"enrol", enrolments},
	{"administer", administration},
	{"restore", restoring},
}

// groupOf is the name of an operation's group.
func groupOf(o operation) string {
	for _, g := range groups {
		if slices.ContainsFunc(g.operations, func(one operation) bool { return one.name == o.name }) {
			return g.name
		}
	}
	return ""
}

// operations are all of them.
var operations = func() (all []operation) {
	for _, g := range groups {
		all = append(all, g.operations...)
	}
	return all
}()

// door asks the gate to open.
var door = world.Ask{Service: world.Door}

// authorizations are fresh dialogs by each kind of client, and by the accomplice in the
// name of others.
var authorizations = []operation{
	{"level 1 by alice", byPhone("alice", door), []grant{{"alice " + approved1, 1}, {`alice is shown "gate"`, 1}}},
	{"level 1 by rob", byPhone("rob", door), []grant{{"rob " + approved1, 1}, {`rob is shown "gate"`, 1}}},
	{"level 1 by suspended sam", byPhone("sam", door), []grant{{`sam is shown "gate"`, 1}}},
	{"level 1 by revoked ruth", byPhone("ruth", door), []grant{{`ruth is shown "gate"`, 1}}},
	{"level 1 by stranger mallory", byPhone("mallory", door), []grant{{`mallory is shown "gate"`, 1}}},
	{"level 1 at revoked shed", byPhone("rob", world.Ask{Service: world.Door, Device: "shed"}), nil},
	{
		"level 1 at the safe, floor 2", byPhone("alice", world.Ask{Service: world.Door, Device: "safe"}),
		[]grant{{"alice approved: nothing of 100 at safe by decision@2", 2}, {`alice is shown "The safe"`, 2}},
	},
	{"level 1 as alice, bob's key", inName("alice", "bob", door), []grant{{`alice by bob is shown "gate"`, 1}}},
	{"level 1 as ruth, bob's key", inName("ruth", "bob", door), []grant{{`ruth by bob is shown "gate"`, 1}}},
	{"password, right", byPhone("alice", pay(5000)), paid("alice", "5000 EUR", 2)},
	{"password, wrong", wrongPassword("alice", pay(5000)), []grant{{`alice is shown "gate"`, 2}}},
	{"password, right but locked", byPhone("dora", pay(5000)), []grant{{`dora is shown "gate"`, 2}}},
	{"password, locked after guesses", lockedAfter("alice", 6), []grant{{`alice is shown "gate"`, 2}}},
	{"password as alice, bob's", inName("alice", "bob", pay(5000)), []grant{{`alice by bob is shown "gate"`, 2}}},
	{
		"UV key, strict", byPhone("alice", strict),
		[]grant{{"alice approved: nothing of 300 at gate by decision@2", 3}, {`alice is shown "gate"`, 3}},
	},
	{"UV key as alice, bob's, strict", inName("alice", "bob", strict), []grant{{`alice by bob is shown "gate"`, 3}}},
	{"UV key as sam, bob's, strict", inName("sam", "bob", strict), []grant{{`sam by bob is shown "gate"`, 3}}},
	{
		"first at level 4", byPhone("alice", pay(1_000_000)),
		[]grant{{"alice pending: 1000000 EUR of 200 at gate by decision@2", 4}, {`alice is shown "gate"`, 4}},
	},
	{
		"second by approver fred", second("fred", "pending"),
		[]grant{{"fred approved: 1000000 EUR of 200 at gate by decision@2", 4}, {`fred is shown "gate"`, 4}},
	},
	{"second by bob", second("bob", "pending"), []grant{{`bob is shown "gate"`, 4}}},
	{"second by carol herself", second("carol", "pending"), []grant{{`carol is shown "gate"`, 4}}},
	{"second by revoked ruth", second("ruth", "pending"), []grant{{`ruth is shown "gate"`, 4}}},
	{"second of what is final", second("fred", "final"), []grant{{`fred is shown "gate"`, 4}}},
	{"second of what was denied", second("fred", "denied"), []grant{{`fred is shown "gate"`, 4}}},
}

var strict = world.Ask{Service: world.Vault, Strict: true}

func pay(minor uint64) world.Ask {
	return world.Ask{Service: world.Payment, Amount: world.EUR(minor)}
}

func paid(who, sum string, level uint64) []grant {
	return []grant{{who + " approved: " + sum + " of 200 at gate by decision@2", level}, {who + ` is shown "gate"`, level}}
}

// byPhone has a phone approve honestly.
func byPhone(who string, ask world.Ask) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		p := *s.Phones[who]
		return s.approve(ctx, who, &p, ask)
	}
}

// inName has a phone say that it is another's, and sign with its own keys.
func inName(victim, by string, ask world.Ask) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		p := *s.Phones[by]
		p.ID, p.Counter = s.Phones[victim].ID, s.Phones[victim].Counter+100
		return s.approve(ctx, victim+" by "+by, &p, ask)
	}
}

func (s *scene) approve(ctx context.Context, who string, p *phone.Phone, ask world.Ask) error {
	d, err := s.begin(ctx, who, p, ask)
	if err != nil {
		return err
	}
	if err := s.Approve(ctx, d); err != nil {
		return err
	}
	s.decided(who, d, d.Answer)
	return refusal(d.Answer)
}

// begin applies. The text on the phone and the level are part of the grant.
func (s *scene) begin(ctx context.Context, who string, p *phone.Phone, ask world.Ask) (*world.Dialog, error) {
	p.Trust = s.Genuine
	d, err := s.Apply(ctx, p, ask)
	if err != nil {
		return nil, err
	}
	s.grants = append(s.grants, grant{who + ` is shown "` + d.P2.DeviceName + `"`, uint64(d.P2.Level)})
	return d, nil
}

// refusal is the error of an answer that approves nothing.
func refusal(a world.Answer) error {
	if a.P4.Result == protocol.ResultApproved || a.P4.Result == protocol.ResultPending {
		return nil
	}
	return a.P4.Reason
}

func wrongPassword(who string, ask world.Ask) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		p := *s.Phones[who]
		d, err := s.begin(ctx, who, &p, ask)
		if err != nil {
			return err
		}
		if err := s.Guess(ctx, d, 0); err != nil {
			return err
		}
		s.decided(who, d, d.Answer)
		return refusal(d.Answer)
	}
}

func second(who, first string) func(*scene, context.Context) error {
	return byFirst(who, func(w *world.World) *world.Dialog { return w.Dialogs[first] })
}

func byFirst(who string, first func(*world.World) *world.Dialog) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		p := *s.Phones[who]
		return s.approve(ctx, who, &p, world.Ask{Service: protocol.ServiceCoApproval, First: first(s.World)})
	}
}

// repeats send an M3 again that was answered.
var repeats = []operation{
	{"again: refused", again("refused"), nil},
	{"again: refused, when alice is revoked", afterRevocation("refused"), nil},
	{"again: approved", again("approved"), []grant{{"again " + approved1, 1}}},
	{"again: approved with a password", again("asked once"), []grant{{"again approved: 7000 EUR of 200 at gate by decision@2", 2}}},
	{"again: by the thief of a phone", again("stolen"), nil},
	{"again: a password that was locked", again("locked"), nil},
	{"again: a wrong password", again("begun"), nil},
	{"again: another password in place of a guess", again("guessed anew"), nil},
	{"again: pending", again("pending"), []grant{{"again pending: 1000000 EUR of 200 at gate by decision@2", 4}}},
	{"again: second that approved", again("second of final"), []grant{{"again approved: 1000000 EUR of 200 at gate by decision@2", 4}}},
	{"again: second that refused", again("second of denied"), nil},
	{"status of a refusal", status("refused"), nil},
	{"status of a denial", status("denied"), nil},
	{"status of an approval", status("approved"), []grant{{what: "status is told that it was approved"}}},
}

func again(name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		d := *s.Dialogs[name]
		a, err := s.Send(ctx, &d, d.M3)
		if err != nil {
			return err
		}
		s.decided("again", &d, a)
		return refusal(a)
	}
}

// afterRevocation is again, once alice is revoked.
func afterRevocation(name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		if _, err := s.Parties.SetClientStatus(ctx, "alice", store.Revoked); err != nil {
			return err
		}
		return again(name)(s, ctx)
	}
}

// status has the phone ask what became of a serial.
func status(name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		who := "alice"
		if name == "denied" {
			who = "carol"
		}
		p, asked := *s.Phones[who], s.Dialogs[name].Serial
		d, err := s.Apply(ctx, &p, world.Ask{Service: protocol.ServiceStatus, Asked: &asked})
		if err != nil {
			return err
		}
		if err := s.Approve(ctx, d); err != nil {
			return err
		}
		s.decided("status", d, d.Answer)
		return refusal(d.Answer)
	}
}

// payments are about what a limit leaves.
var payments = []operation{
	{"limit: more than is left", byPhone("lena", pay(100_000)), []grant{{`lena is shown "gate"`, 2}}},
	{"limit: what is left", byPhone("lena", pay(40_000)), paid("lena", "40000 EUR", 1)},
	{"limit: given back", report("paid 5", "gate", 900_000, 200_000), paid("lena", "900000 EUR", 2)},
	{"limit: given back after a report", report("paid 4", "gate", 100_000), []grant{{`lena is shown "gate"`, 2}}},
	{"limit: paid in parts", inParts, append(paid("lena", "40000 EUR", 1), grant{`lena, over the limit, is shown "gate"`, 1})},
	{"limit: given back by another", report("paid 5", "safe", 100_000), []grant{{`lena is shown "gate"`, 2}}},
}

// report has a device say that a payment was not performed; then lena pays.
func report(name, at string, sums ...uint64) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		id, err := s.Transaction(s.Dialogs[name])
		if err != nil {
			return err
		}
		device, err := s.Parties.Device(ctx, s.Keys.SPIFFEID("device", at).String())
		if err != nil {
			return err
		}
		reported := s.Authorize.Outcome(ctx, device, deviceapi.OutcomeRequest{Transaction: id})
		p := *s.Phones["lena"]
		for _, sum := range sums {
			if err := s.approve(ctx, "lena", &p, pay(sum)); err != nil {
				return err
			}
		}
		return reported
	}
}

// inParts pays the rest of the limit, and then once more.
func inParts(s *scene, ctx context.Context) error {
	p := *s.Phones["lena"]
	err := s.approve(ctx, "lena", &p, pay(40_000))
	return errors.Join(err, s.approve(ctx, "lena, over the limit,", &p, pay(45_000)))
}

// lockedAfter guesses a password, and then has it right.
func lockedAfter(who string, guesses int) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		p := *s.Phones[who]
		for range guesses {
			d, err := s.Apply(ctx, &p, pay(5000))
			if err != nil {
				return err
			}
			if err := s.Guess(ctx, d, 0); err != nil {
				return err
			}
		}
		return s.approve(ctx, who, &p, pay(5000))
	}
}
