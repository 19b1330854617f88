package demo

import (
	"bytes"
	"context"
	"encoding/hex"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
)

var scenes = []scene{
	{
		"Enrolment",
		[]string{
			"The administrator invites, the phone makes its key and proves it. The activation code names the",
			"appliance's root key, so no other server is believed. A code works once.",
		},
		(*stage).enrolment,
		harness.Tally{Clients: 1},
	},
	{
		"A door is opened",
		[]string{"Alice's phone has no network: four messages by way of the relay, one signature."},
		(*stage).door,
		harness.Tally{Decisions: 1, Audited: 1, Acts: 1},
	},
	{
		"Refused by the user",
		[]string{"Bob reads what is asked and says no. The refusal is signed and kept; nothing is done."},
		(*stage).refusal,
		harness.Tally{Clients: 1, Decisions: 1, Audited: 1},
	},
	{
		"A small payment",
		[]string{"The phone proposes 12.00 EUR; what it signs, the audit record and the till's hook all say so."},
		(*stage).payment,
		harness.Tally{Decisions: 1, Audited: 1, Acts: 1},
	},
	{
		"One bit altered on the way",
		[]string{
			"The attacker changes one bit of each message in turn. Nobody acts on what was altered, and",
			"a phone that lost an answer finds out what became of its request.",
		},
		(*stage).alteredBit,
		harness.Tally{Decisions: 2, Audited: 2, Acts: 2},
	},
	{
		"A replay",
		[]string{
			"The answer is lost, so the phone sends its countersignature again; then the attacker replays",
			"his recording of it. The same result comes back each time, and the door opens once.",
		},
		(*stage).replay,
		harness.Tally{Decisions: 1, Audited: 1, Acts: 1},
	},
	{
		"A device that claims another order",
		[]string{
			"A kiosk sells coffee for 12.00 EUR. Neither another service nor another price gets a signature",
			"there, and a lying device's true decision is worth nothing for another order.",
		},
		(*stage).otherOrder,
		harness.Tally{Clients: 1, Devices: 2, Decisions: 2, Audited: 2},
	},
	{
		"A suspended phone",
		[]string{"Lost, suspended, found, resumed. Only a true signature is told \"suspended\"."},
		(*stage).suspension,
		harness.Tally{Decisions: 2, Audited: 2, Acts: 1},
	},
	{
		"A phone that nobody enrolled",
		[]string{"On the wire it looks like one that was refused: same messages, same sizes, no early answer."},
		(*stage).stranger,
		harness.Tally{Decisions: 1, Audited: 1},
	},
	{
		"A payment that needs the password",
		[]string{
			"From 50.00 EUR the policy asks for the offline password. It is typed on the phone only; what the",
			"appliance has of it is wrapped by a key in the token, and the token checks it.",
		},
		(*stage).password,
		harness.Tally{Clients: 1, Decisions: 1, Audited: 1, Acts: 1},
	},
	{
		"A wrong password, then the right one",
		[]string{"Dora mistypes. She is told how many tries are left, and the same challenge takes another."},
		(*stage).mistyped,
		harness.Tally{Decisions: 1, Audited: 1, Refused: 1, Acts: 1},
	},
	{
		"Locked, and unlocked by the administrator",
		[]string{
			"Somebody with Dora's phone guesses: three tries a challenge, five in all, then a back-off that",
			"doubles. Not even the right password counts until it is over or the administrator unlocks.",
		},
		(*stage).locked,
		harness.Tally{Decisions: 3, Audited: 3, Refused: 4, Acts: 1},
	},
	{
		"The vault, at level 3",
		[]string{
			"It wants a second key, which the phone uses only after verifying its user, and the password.",
			"Emil's phone has no such key: it can only refuse.",
		},
		(*stage).vault,
		harness.Tally{Clients: 1, Decisions: 1, Audited: 1, Acts: 1},
	},
	{
		"A large payment and a second person",
		[]string{
			"From 10,000.00 EUR a second person approves, with the role \"approver\", at the same device. Nothing",
			"is done before; afterwards Dora's phone asks what became of it.",
		},
		(*stage).secondPerson,
		harness.Tally{Clients: 1, Decisions: 2, Audited: 3, Acts: 1},
	},
	{
		"The same phone twice",
		[]string{"Frank has the role himself. For his own payment it is worth nothing."},
		(*stage).sameTwice,
		harness.Tally{Decisions: 2, Audited: 2},
	},
	{
		"A second person without the role",
		[]string{"Emil may not approve, so Frank's payment waits on. Grace may, and refuses: that ends it."},
		(*stage).withoutRole,
		harness.Tally{Clients: 1, Decisions: 2, Audited: 4},
	},
	{
		"A strict device",
		[]string{
			"This till wants the phone's own countersignature, and verifies it. Its users are told so, and",
			"no appliance can make up an approval there.",
		},
		(*stage).strict,
		harness.Tally{Clients: 1, Devices: 2, Decisions: 2, Audited: 2},
	},
	{
		"An outcome that nobody told",
		[]string{
			"The door opens, the answer is lost, and the appliance is killed (kill -9) with the relay. The door has",
			"forgotten the session, so the phone cannot resume: it asks what became of its serial.",
		},
		(*stage).untold,
		harness.Tally{Decisions: 2, Audited: 3, Acts: 1},
	},
	{
		"The jammed cash machine",
		[]string{
			"Dora may have 50,000.00 EUR a day. The machine jams on 30,000.00, says so, and the appliance gives",
			"the limit back: the second time it still fits, a third time it does not. Dora's phone can ask.",
		},
		(*stage).jammed,
		harness.Tally{Devices: 1, Decisions: 5, Audited: 6},
	},
}

func (s *stage) enrolment(ctx context.Context) {
	code := s.enrol(ctx, "alice")
	s.Say("   Mallory found the code and tries it too:")
	s.client(ctx, "mallory", codeRefused, "enrol", "--url", s.URL, "--code-file", s.codeFile("mallory", code))
}

func (s *stage) door(ctx context.Context) {
	a := s.authorize(ctx, "alice", approved, "door.open=100")
	s.demand(a.Result == "approved", "result %q", a.Result)
	total := s.traffic()
	s.demand(total == 274, "%d bytes on the wire, wanted 274", total)
	s.onlyCiphertext(ctx)
}

// traffic shows the messages that went over the wire, and counts their bytes.
func (s *stage) traffic() (total int) {
	names := map[byte]string{
		message.KindM1: "M1 apply", message.KindM2: "M2 challenge", message.KindM3: "M3 countersign", message.KindM4: "M4 receipt",
	}
	for _, f := range s.wire.Frames() {
		arrow := "relay → phone"
		if f.FromPhone {
			arrow = "phone → relay"
		}
		total += len(f.Message)
		s.Say("           %s  %-14s %3d bytes  %s…", arrow, names[f.Kind()], len(f.Message), hex.EncodeToString(f.Message[:12]))
	}
	s.Say("           %d bytes in all", total)
	return total
}

// onlyCiphertext looks for what the relay is not to learn from the messages.
func (s *stage) onlyCiphertext(ctx context.Context) {
	alice := harness.Must(s.Client(ctx, "alice"))
	id := harness.Must(hex.DecodeString(alice.ID))
	for _, f := range s.wire.Frames() {
		for what, secret := range map[string][]byte{"the phone's id": id, "the device's name": []byte("Countersign dev box")} {
			s.demand(!bytes.Contains(f.Message, secret), "%s is readable in message %x", what, f.Message[:1])
		}
	}
	acts, err := s.Acts()
	if err != nil || len(acts) == 0 {
		harness.Fail("no act: %w", err)
	}
	s.Say("           the relay read none of them: neither the phone's id nor a name is in any. Its hook was told:")
	act := acts[len(acts)-1]
	s.Say("           service %d, level %d, a client it knows as %s only", act.Service, act.Level, act.Pairwise)
	s.demand(act.Service == 100 && act.Pairwise != alice.ID, "act %+v", act)
}

func (s *stage) refusal(ctx context.Context) {
	s.enrol(ctx, "bob")
	a := s.client(ctx, "bob", denied, "authorize", "--link", s.wire.Link(), "--service", "100", "--refuse")
	s.demand(a.Code == protocol.CodeUserRefused, "code %d", uint8(a.Code))
}

func (s *stage) payment(ctx context.Context) {
	a := s.authorize(ctx, "alice", approved, "payment=200", "--amount", "12.00", "--currency", "EUR")
	s.demand(a.Amount == "12.00 EUR", "amount %q", a.Amount)
	acts := harness.Must(s.Acts())
	act := acts[len(acts)-1]
	s.demand(act.Service == 200 && act.Amount != nil && *act.Amount == harness.Amount{Minor: 1200, Currency: "EUR"}, "act %+v", act)
}
