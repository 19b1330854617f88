package world

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/enrol"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	protoenrol "countersign/protocol/enrol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
)

// converse begins dialogs that are answered later, and those that will be known to have
// been answered earlier.
func (b *builder) converse(ctx context.Context) {
	begin := func(name, who string, ask Ask) {
		d := harness.Must(b.House.Apply(ctx, b.Phones[who], ask))
		b.Dialogs[name] = d
	}
	level4 := Ask{Service: Payment, Amount: EUR(1_000_000)}
	b.steal(ctx)
	begin("refused", "alice", Ask{Service: Payment, Amount: EUR(900_000)})
	begin("approved", "alice", Ask{Service: Door})
	begin("asked once", "alice", Ask{Service: Payment, Amount: EUR(7000)})
	begin("begun", "alice", Ask{Service: Payment, Amount: EUR(6000)})
	for _, name := range []string{"pending", "final", "denied"} {
		begin(name, "carol", level4)
	}
}

// steal has a thief use alice's phone, with her signing key and a UV key of the thief's own.
// The appliance knows alice's UV key and refuses that one: the thief refuses first, so that
// a decision is stored, and then has an approval in hand.
func (b *builder) steal(ctx context.Context) {
	thief := *b.Phones["alice"]
	thief.Give(phone.Full())
	b.Phones["thief"] = &thief
	d := harness.Must(b.House.Apply(ctx, &thief, Ask{Service: Vault, Strict: true}))
	harness.Do(b.Refuse(ctx, d))
	d.M3 = harness.Must(d.Countersign(ctx, protocol.Approve))
	b.Dialogs["stolen"], b.Phones["alice"].Counter = d, thief.Counter
}

// settle answers them.
func (b *builder) settle(ctx context.Context) {
	d := b.Dialogs
	harness.Do(errors.Join(
		b.Refuse(ctx, d["refused"]), b.Approve(ctx, d["approved"]), b.Approve(ctx, d["asked once"]), b.Guess(ctx, d["begun"], 0),
		b.Approve(ctx, d["pending"]), b.Approve(ctx, d["final"]), b.Approve(ctx, d["denied"]),
	))
	b.snapshot(ctx)
	b.second(ctx, "final", b.Approve)
	b.second(ctx, "denied", b.Refuse)
	harness.Do(errors.Join(b.guessAnew(ctx), b.lock(ctx), b.spend(ctx)))
}

// guessAnew has another password in hand for the attempt that was begun.
func (b *builder) guessAnew(ctx context.Context) (err error) {
	d := *b.Dialogs["begun"]
	d.M3, err = d.Countersign(ctx, protocol.Approve)
	b.Dialogs["guessed anew"] = &d
	return err
}

// second has the second approver answer.
func (b *builder) second(ctx context.Context, first string, answer func(context.Context, *Dialog) error) {
	d := harness.Must(b.House.Apply(ctx, b.Phones["fred"], Ask{Service: protocol.ServiceCoApproval, First: b.Dialogs[first]}))
	b.Dialogs["second of "+first] = d
	harness.Do(answer(ctx, d))
}

// lock has dora's password guessed until it is locked.
func (b *builder) lock(ctx context.Context) error {
	for range 5 {
		d, err := b.House.Apply(ctx, b.Phones["dora"], Ask{Service: Payment, Amount: EUR(5000)})
		if err != nil {
			return err
		}
		if err := b.Guess(ctx, d, 0); err != nil {
			return err
		}
	}
	return nil
}

// spend has lena pay 49,500 of the 50,000 EUR that she may pay in a day. Of the last two payments
// one was reported as performed and the other was not reported.
func (b *builder) spend(ctx context.Context) error {
	for i := range 5 {
		d, err := b.House.Apply(ctx, b.Phones["lena"], Ask{Service: Payment, Amount: EUR(990_000)})
		if err != nil {
			return err
		}
		if err := b.Approve(ctx, d); err != nil {
			return err
		}
		b.Dialogs[fmt.Sprintf("paid %d", i+1)] = d
	}
	if err := b.tryLocked(ctx); err != nil {
		return err
	}
	performed := b.Dialogs["paid 4"]
	id, err := b.Transaction(performed)
	if err != nil {
		return err
	}
	return b.Authorize.Outcome(ctx, performed.Device, deviceapi.OutcomeRequest{Transaction: id, Performed: true})
}

// tryLocked has dora try the right password while it is locked.
func (b *builder) tryLocked(ctx context.Context) error {
	d, err := b.House.Apply(ctx, b.Phones["dora"], Ask{Service: Payment, Amount: EUR(5000)})
	if err != nil {
		return err
	}
	b.Dialogs["locked"] = d
	return b.Approve(ctx, d)
}

// Transaction is the id of what a dialog came to.
func (w *World) Transaction(d *Dialog) (protocol.TransactionID, error) {
	got, err := d.Check(w.Root, w.Certs, uint64(time.Now().Unix())).Verify(d.Answer.Decision())
	if err != nil {
		return got.Transaction, err
	}
	return got.Transaction, nil
}

// Decision is what the device got, nil where there is none.
func (a Answer) Decision() []byte { return a.CountersignResponse.Decision }

// invite leaves invitations of each kind: open, used, and expired.
func (b *builder) invite(ctx context.Context) {
	late, _, err1 := b.House.Enrol.Invite(ctx, enrol.Invite{Kind: store.KindClient, Name: "late", TTL: time.Second, Roles: []string{"approver"}})
	open, _, err2 := b.House.Enrol.Invite(ctx, enrol.Invite{Kind: store.KindClient, Name: "nora"})
	b.Codes["late"], b.Codes["nora"] = late, open
	var random [13]byte
	copy(random[:], "of no invitat")
	b.Codes["made up"] = protoenrol.NewActivationCode(b.Hash(), random)
	till, err3 := b.asksFor(ctx, "till", time.Hour)
	harness.Do(errors.Join(err1, err2, err3))
	harness.Must(b.signed(ctx, till))
}

// leaveOpen leaves change requests in each state.
func (b *builder) leaveOpen(ctx context.Context) {
	c := b.Changes
	if _, err := b.signed(ctx, c["failed"]); !errors.Is(err, requests.ErrOver) {
		harness.Fail("a stale request: %v", err)
	}
	c["expired"] = harness.Must(b.asksFor(ctx, "door-1", 2*time.Second))
	c["withdrawn"] = harness.Must(b.asksFor(ctx, "door-2", time.Hour))
	harness.Must(b.Requests.Withdraw(ctx, c["withdrawn"].Hash.ID()))
	b.place.Clock.Advance(3 * time.Second) // the late invitation expires too
	if _, err := b.signed(ctx, c["expired"]); !errors.Is(err, requests.ErrOver) {
		harness.Fail("an expired request: %v", err)
	}
	c["open"] = harness.Must(b.asksFor(ctx, "door-3", time.Hour))
	c["policy"] = harness.Must(b.Requests.Ask(ctx, rules.Draft(b.Lenient)))
	c["admin"] = harness.Must(b.Requests.Ask(ctx, requests.DraftAdmin("eve", b.Operators["mallory"].Public)))
	backUp := change.Draft{Kind: policy.KeyBackup, Parameters: change.Parameters{"partial": true}}
	c["backup"] = harness.Must(b.Requests.Ask(ctx, backUp))
	backUp.Parameters = change.Parameters{"partial": false}
	c["executed"] = harness.Must(b.Requests.Ask(ctx, backUp))
	harness.Must(b.signed(ctx, c["executed"]))
	b.interrupt(ctx)
}

// interrupt leaves a request as an appliance does that is killed when it was taken.
func (b *builder) interrupt(ctx context.Context) {
	b.Codes["door-4"] = protoenrol.NewActivationCode(b.Hash(), [13]byte{4})
	sum := sha256.Sum256([]byte(b.Codes["door-4"].String()))
	c := harness.Must(b.Requests.Preview(ctx, change.Draft{Kind: policy.DeviceInvite, Parameters: change.Parameters{
		"name": "door-4", "display": "door-4", "floor": uint64(1), "ttl_s": uint64(3600), "replace": false, "code_sha256": sum[:],
	}}))
	now := b.place.Clock.Now()
	row := store.Change{ID: c.Hash.ID(), Document: c.Document, State: store.ChangeTaken, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	for _, name := range []string{"ann", "cat"} {
		raw := harness.Must(b.Operators[name].Sign(ctx, c.Hash))
		row.Signatures = append(row.Signatures, store.ChangeSignature{Signer: change.SignerOf(b.Operators[name].Public), Signature: raw, At: now})
	}
	b.Changes["taken"] = c
	harness.Do(b.Store.AddChange(ctx, row, audit.NewRecord(audit.KindChanges, "change", nil)))
}
