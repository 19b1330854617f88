package enrol_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/appliancetest"
	"countersign/appliance/enrol"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/protocol"
	protocolenrol "countersign/protocol/enrol"
)

func TestEnrolOnce(t *testing.T) {
	b := appliancetest.New(t)
	code := b.Code(store.KindClient, "alice")
	alice, mallory := b.Stranger(), b.Stranger()
	body := alice.Request(code)
	first, err := b.Enrol.Client(t.Context(), body)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.Enrol.Client(t.Context(), body)
	if err != nil || string(again) != string(first) {
		t.Errorf("identical repeat: %v, the same answer: %v", err, string(again) == string(first))
	}
	if _, err := b.Enrol.Client(t.Context(), mallory.Request(code)); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("code used by another: %v, want code 4", err)
	}
	if _, err := b.Enrol.Client(t.Context(), alice.Request(b.Code(store.KindClient, "bob"))); !errors.Is(err, enrol.ErrTaken) {
		t.Errorf("same key twice: %v, want taken", err)
	}
	if _, err := b.Enrol.Client(t.Context(), mallory.Request(b.Code(store.KindDevice, "pos"))); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("device's code: %v, want code 4", err)
	}
	late := b.Code(store.KindClient, "carol")
	b.Clock.Advance(25 * time.Hour)
	if _, err := b.Enrol.Client(t.Context(), mallory.Request(late)); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("expired code: %v, want code 4", err)
	}
}

// TestPasswordLength: phones get the floor of the policy in force.
func TestPasswordLength(t *testing.T) {
	b := appliancetest.New(t)
	if n := b.Enrol.PasswordLength(); n != 6 {
		t.Errorf("by default: %d", n)
	}
	b.AddPolicy(2, []byte("[password]\nmin_length = 9\n[[service]]\nid = 300\nname = \"vault\"\nlevel = 3\n"))
	b.Restart()
	if n := b.Enrol.PasswordLength(); n != 9 {
		t.Errorf("policy 2: %d", n)
	}
}

// TestExpiredCode: an expired activation code is refused before anything else of the request is looked at.
func TestExpiredCode(t *testing.T) {
	b := appliancetest.New(t)
	code := b.Code(store.KindClient, "alice")
	p := b.FullPhone()
	sent, err := protocolenrol.ParseRequest(p.Request(code))
	if err != nil {
		t.Fatal(err)
	}
	sent.Password.Wrapped[0] ^= 1
	sent, err = protocolenrol.Sign(t.Context(), sent, p.Key, *p.UV)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Enrol.Client(t.Context(), body); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("a password that does not unwrap: %v, want code 1", err)
	}
	b.Clock.Advance(25 * time.Hour)
	if _, err := b.Enrol.Client(t.Context(), body); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("and with an expired code: %v, want code 4", err)
	}
}

// TestInvitations: an invitation that is out of bounds is refused, and one at a bound is not.
func TestInvitations(t *testing.T) {
	b := appliancetest.New(t)
	client := enrol.Invite{Kind: store.KindClient, Name: "alice", TTL: enrol.MaxInvitation, Roles: []string{"approver"}}
	device := enrol.Invite{Kind: store.KindDevice, Name: "till", Floor: 4, Display: strings.Repeat("x", 24)}
	for name, c := range map[string]struct {
		invite enrol.Invite
		change func(*enrol.Invite)
		good   bool
	}{
		"client":               {client, func(*enrol.Invite) {}, true},
		"no name":              {client, func(i *enrol.Invite) { i.Name = "" }, false},
		"no time":              {client, func(i *enrol.Invite) { i.TTL = -1 }, false},
		"too long":             {client, func(i *enrol.Invite) { i.TTL++ }, false},
		"a role with a space":  {client, func(i *enrol.Invite) { i.Roles[0] = "two words" }, false},
		"the role of a UV key": {client, func(i *enrol.Invite) { i.Roles = []string{"approver", "uv"} }, false},
		"device":               {device, func(*enrol.Invite) {}, true},
		"above every level":    {device, func(i *enrol.Invite) { i.Floor++ }, false},
		"a name too long":      {device, func(i *enrol.Invite) { i.Display += "x" }, false},
	} {
		i := c.invite
		i.Roles = slices.Clone(i.Roles)
		c.change(&i)
		if _, _, err := b.Enrol.Invite(t.Context(), i); (err == nil) != c.good || err != nil && !errors.Is(err, parties.ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestForgedInvitation: a forged or reopened activation code enrols no client.
func TestForgedInvitation(t *testing.T) {
	for name, forge := range map[string]func(b *appliancetest.Bench, code [32]byte){
		"made up": func(b *appliancetest.Bench, code [32]byte) {
			b.Tamper(1, `INSERT INTO invitation (code, kind, name, display, floor, created_us, expires_us, roles, number, seal)
				SELECT ?, kind, 'eve', display, floor, created_us, 9e15, '["approver"]', number, seal FROM invitation WHERE name = 'alice'`, code[:])
		},
		"used, and opened again": func(b *appliancetest.Bench, code [32]byte) {
			b.Tamper(1, `UPDATE invitation SET code = ?, used_us = NULL, request = NULL, response = NULL WHERE name = 'alice'`, code[:])
		},
		"a device's": func(b *appliancetest.Bench, code [32]byte) {
			b.Tamper(1, `INSERT INTO invitation (code, kind, name, display, floor, created_us, expires_us, roles, number, seal)
				SELECT ?, 'client', 'eve', '', 0, created_us, 9e15, '[]', number, seal FROM invitation WHERE kind = 'device'`, code[:])
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.New(t)
			b.EnrolPhone("alice")
			code := protocolenrol.NewActivationCode(b.Keyring.Root().RootHash(), [13]byte{1})
			forge(b, sha256.Sum256([]byte(code.String())))
			b.Forgeries(func() {
				if _, err := b.Enrol.Client(t.Context(), b.Stranger().Request(code)); !errors.Is(err, protocol.CodeRefused) {
					t.Errorf("enrolled: %v", err)
				}
			})
		})
	}
}

// TestUsedInvitationPutBack: restoring the row of an unused code, with its seal, does not make
// the code valid again.
func TestUsedInvitationPutBack(t *testing.T) {
	b := appliancetest.New(t)
	code := b.Code(store.KindClient, "alice")
	seal := appliancetest.Column[[]byte](b, `SELECT seal FROM invitation WHERE name = 'alice'`)
	if _, err := b.Enrol.Client(t.Context(), b.Stranger().Request(code)); err != nil {
		t.Fatal(err)
	}
	b.Tamper(1, `UPDATE invitation SET used_us = NULL, request = NULL, response = NULL, seal = ? WHERE name = 'alice'`, seal)
	b.Tamper(1, `UPDATE client SET name = 'gone' WHERE name = 'alice'`)
	b.Forgeries(func() {
		if _, err := b.Enrol.Client(t.Context(), b.Stranger().Request(code)); !errors.Is(err, protocol.CodeRefused) {
			t.Errorf("enrolled: %v", err)
		}
	})
}

// TestUnattested: a UV key whose attestation policy does not accept is no factor.
func TestUnattested(t *testing.T) {
	b := appliancetest.New(t)
	b.AddPolicy(2, []byte("[uv]\nattestation = []\n[[service]]\nid = 300\nname = \"vault\"\nlevel = 3\n"))
	b.Restart()
	alice := b.EnrolFull("alice")
	s := alice.Challenge(appliancetest.Vault, nil)
	appliancetest.Expect(t, s.Must(s.With(0, nil)), protocol.ResultDenied, protocol.CodePolicy)
}

// TestAttestationHook: the policy accepts or refuses the format that the hook returns.
func TestAttestationHook(t *testing.T) {
	b := appliancetest.New(t)
	b.AddPolicy(2, []byte("[uv]\nattestation = [\"good\"]\n[[service]]\nid = 300\nname = \"vault\"\nlevel = 3\n"))
	b.Restart(func(c *appliance.Config) {
		c.Attest = func(_ context.Context, a enrol.Attestation) (string, error) {
			if string(a.Statement) == "genuine" {
				return "good", nil
			}
			return "", errors.New("not genuine")
		}
	})
	for statement, want := range map[string]protocol.Code{"genuine": 0, "forged": protocol.CodePolicy, "": protocol.CodePolicy} {
		p := b.FullPhone()
		p.Attestation = []byte(statement)
		b.EnrolAs("phone-"+statement, p)
		s := p.Challenge(appliancetest.Vault, nil)
		if a := s.Must(s.With(0, nil)); a.P4.Reason != want {
			t.Errorf("attestation %q: code %d, want %d", statement, a.P4.Reason, want)
		}
	}
}

// TestResumeOfNobody: the resumption of a party that is not there says so.
func TestResumeOfNobody(t *testing.T) {
	b := appliancetest.New(t)
	_, _, client := b.Enrol.DraftResumeClient(t.Context(), "nobody")
	_, _, device := b.Enrol.DraftResumeDevice(t.Context(), "nobody")
	_, _, locked := b.Enrol.DraftUnlock(t.Context(), "nobody")
	for what, err := range map[string]error{"client": client, "device": device, "unlock": locked} {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
