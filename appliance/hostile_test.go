package appliance_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/receipt"
)

// What a writer of the database gets: nothing but denials. softhsm-test/hostile has every
// table and column; these are the ones that got something once.

// column reads one value behind the appliance's back.
func column[T any](b *bench, query string, args ...any) (v T) {
	b.Helper()
	db, err := sql.Open("sqlite", b.path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.QueryRow(query, args...).Scan(&v); err != nil {
		b.Fatalf("%s: %v", query, err)
	}
	return v
}

// forgeries requires that something raises the alarm.
func (b *bench) forgeries(do func()) {
	b.Helper()
	before := b.seals.Forged()
	do()
	if b.seals.Forged() == before {
		b.Error("no alarm")
	}
}

// TestRefusalStaysRefused: a stored refusal that is made an approval is signed by nobody.
func TestRefusalStaysRefused(t *testing.T) {
	for name, change := range map[string]func(b *bench, refused receipt.Decision){
		"result": func(b *bench, d receipt.Decision) {
			d.Result, d.Reason, d.Factors = protocol.ResultApproved, 0, protocol.FactorSignature|protocol.FactorPassword
			b.tamper(1, `UPDATE decision SET result = 1, reason = 0, payload = ? WHERE result = 0`, d.Marshal())
		},
		"result, and the client is revoked": func(b *bench, d receipt.Decision) {
			if _, err := b.SetClientStatus(b.Context(), "alice", store.Revoked); err != nil {
				b.Fatal(err)
			}
			d.Result, d.Reason = protocol.ResultApproved, 0
			b.tamper(1, `UPDATE decision SET result = 1, reason = 0, payload = ? WHERE result = 0`, d.Marshal())
		},
		"another decision": func(b *bench, _ receipt.Decision) {
			b.tamper(1, `UPDATE decision SET (result, reason, payload, seal) =
				(SELECT a.result, a.reason, a.payload, a.seal FROM decision a WHERE a.result = 1) WHERE result = 0`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			alice := b.enrolFull("alice")
			expect(t, alice.challenge(payment, eur(6000)).withRight(), protocol.ResultApproved, 0)
			s := alice.challenge(payment, eur(900_000))
			m3 := s.m3(protocol.Refuse)
			expect(t, s.must(m3), protocol.ResultDenied, protocol.CodeUserRefused)
			refused, err := receipt.Parse(column[[]byte](b, `SELECT payload FROM decision WHERE result = 0`))
			if err != nil {
				t.Fatal(err)
			}
			b.forgeries(func() {
				change(b, refused)
				a, err := s.send(m3)
				if err == nil && (a.res.Decision != nil || a.p4.Result != protocol.ResultDenied) {
					t.Errorf("answered %s, with a decision of %d bytes", a.p4.Result, len(a.res.Decision))
				}
			})
		})
	}
}

// withRight answers with the right password.
func (s *session) withRight() answer { return s.must(s.with(0, nil)) }

// lying is a store whose outcomes are others than it was given: what a seal under a key
// that leaked, or a defect of a driver, would come to.
type lying struct {
	store.Store
	lie func(*store.Outcome)
}

func (l *lying) Spend(ctx context.Context, s store.Spend) (store.Outcome, error) {
	out, err := l.Store.Spend(ctx, s)
	l.lie(&out)
	return out, err
}

// TestSignsWhatItMadeAgain: a stored decision that is not what handle, evidence and policy
// come to is not signed, whatever vouches for it.
func TestSignsWhatItMadeAgain(t *testing.T) {
	second := [32]byte{1}
	b := newBench(t)
	alice := b.enrolFull("alice")
	liar := &lying{Store: b.store}
	b.store = liar
	b.restart()
	for name, lie := range map[string]func(*store.Outcome){
		"statement":        func(o *store.Outcome) { o.Decision.Statement[0]++ },
		"second statement": func(o *store.Outcome) { o.Decision.SecondStatement = &second },
		"level":            func(o *store.Outcome) { o.Decision.Level = 3 },
		"factors":          func(o *store.Outcome) { o.Decision.Factors |= protocol.FactorUV },
		"device":           func(o *store.Outcome) { o.Decision.Device[0]++ },
		"service":          func(o *store.Outcome) { o.Decision.Service++ },
		"amount":           func(o *store.Outcome) { o.Decision.Amount = eur(1) },
		"no amount":        func(o *store.Outcome) { o.Decision.Amount = nil },
		"pairwise id":      func(o *store.Outcome) { o.Decision.Pairwise[0]++ },
		"u":                func(o *store.Outcome) { o.Decision.U[0]++ },
		"lifetime":         func(o *store.Outcome) { o.Decision.Lifetime++ },
		"policy":           func(o *store.Outcome) { o.Decision.Policy[0]++ },
		"result":           func(o *store.Outcome) { o.Result, o.Reason = protocol.ResultPending, protocol.CodePending },
		"reason":           func(o *store.Outcome) { o.Reason = protocol.CodeLimit },
	} {
		t.Run(name, func(t *testing.T) {
			liar.lie = lie
			s := alice.challenge(payment, eur(200))
			b.forgeries(func() {
				a, err := s.send(s.with(0, nil))
				if err == nil && (a.res.Decision != nil || a.p4.Result != protocol.ResultDenied || a.p4.Reason != protocol.CodeRefused) {
					t.Errorf("answered %s, code %d, with a decision of %d bytes", a.p4.Result, a.p4.Reason, len(a.res.Decision))
				}
			})
		})
	}
	for name, lie := range map[string]func(*store.Outcome){
		"nothing":     func(*store.Outcome) {},
		"transaction": func(o *store.Outcome) { o.Decision.Transaction[0]++ }, // which the record itself has to hold
	} {
		liar.lie = lie
		if a := alice.challenge(payment, eur(200)).withRight(); a.res.Decision == nil {
			t.Errorf("%s: no decision", name)
		}
	}
	// A user who refused has approved nothing, whatever is stored.
	liar.lie = func(o *store.Outcome) { o.Result, o.Reason, o.Decision.Result, o.Decision.Reason = 1, 0, 1, 0 }
	s := alice.challenge(payment, eur(200))
	if a, err := s.send(s.m3(protocol.Refuse)); err == nil && a.res.Decision != nil {
		t.Error("a refusal was signed as an approval")
	}
}

// written answers one M3 with what another would have come to, as if it were stored.
type written struct {
	store.Store
	out *store.Outcome
}

func (w *written) Spend(_ context.Context, sp store.Spend) (store.Outcome, error) {
	out := sp.Unopposed()
	w.out = &out
	return out, store.ErrUnavailable
}

func (w *written) Answered(ctx context.Context, key store.AnswerKey) (store.Outcome, error) {
	if w.out == nil {
		return w.Store.Answered(ctx, key)
	}
	return *w.out, nil
}

// TestEvidenceOfAnother: what is stored as approved is not signed for a countersignature that
// does not verify, though all else fits.
func TestEvidenceOfAnother(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	b.store = &written{Store: b.store}
	b.restart()
	s := alice.challenge(door, nil)
	if _, err := s.send(s.with(0, nil)); err == nil {
		t.Fatal("nothing is unavailable")
	}
	alice.key = newSoftKey()
	b.forgeries(func() {
		a, err := s.send(s.with(0, nil))
		if err == nil && (a.res.Decision != nil || a.p4.Result != protocol.ResultDenied) {
			t.Errorf("answered %s, code %d, with a decision of %d bytes", a.p4.Result, a.p4.Reason, len(a.res.Decision))
		}
	})
}

// TestStolenUVKey: the UV key of a thief in the client's row, and its certificate emptied,
// give a strict device nothing.
func TestStolenUVKey(t *testing.T) {
	b := newBench(t)
	alice, thief := b.enrolFull("alice"), newSoftKey()
	point := thief.point()
	b.tamper(1, `UPDATE client SET uv_key = ?, cert = NULL`, point[:])
	alice.uv = &thief
	s, err := alice.applyWith(alice.p1(vault), deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{vault}}, Link: deviceapi.LinkWire, Strict: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.forgeries(func() { expect(t, s.must(s.with(0, nil)), protocol.ResultDenied, protocol.CodeRefused) })
}

// TestCertificateOfTheClient: a certificate is made anew only for keys that a genuine one
// names, and not where it is missing or another's.
func TestCertificateOfTheClient(t *testing.T) {
	for name, spoil := range map[string]func(c, other *store.Client){
		"emptied":         func(c, _ *store.Client) { c.Cert = nil },
		"another's":       func(c, other *store.Client) { c.Cert = other.Cert },
		"cut off":         func(c, _ *store.Client) { c.Cert = c.Cert[:len(c.Cert)-1] },
		"another uv key":  func(c, _ *store.Client) { point := newSoftKey().point(); c.UVKey = &point },
		"without uv key":  func(c, _ *store.Client) { c.UVKey = nil },
		"its own (alive)": func(*store.Client, *store.Client) {},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			alice := b.enrolFull("alice")
			b.enrolFull("bob")
			c, other := b.client("alice"), b.client("bob")
			spoil(&c, &other)
			c.Version++ // as the appliance itself would write it: the seal fits
			if err := b.store.UpdateClient(t.Context(), c, audit.NewRecord(audit.KindClients, "client/alice", nil)); err != nil {
				t.Fatal(err)
			}
			s, err := alice.applyWith(alice.p1(payment), deviceapi.ApplyRequest{
				Order: deviceapi.Order{Services: []protocol.Service{payment}, Amount: eur(6000)}, Link: deviceapi.LinkWire, Strict: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			a := s.must(s.with(0, nil))
			if good := a.res.Decision != nil; good != (name == "its own (alive)") {
				t.Errorf("answered %s, code %d, with a decision of %d bytes", a.p4.Result, a.p4.Reason, len(a.res.Decision))
			}
		})
	}
}

// TestForgedInvitation: a code that nobody was given, or that was used, enrols nobody.
func TestForgedInvitation(t *testing.T) {
	for name, forge := range map[string]func(b *bench, code [32]byte){
		"made up": func(b *bench, code [32]byte) {
			b.tamper(1, `INSERT INTO invitation (code, kind, name, display, floor, created_us, expires_us, roles, number, seal)
				SELECT ?, kind, 'eve', display, floor, created_us, 9e15, '["approver"]', number, seal FROM invitation WHERE name = 'alice'`, code[:])
		},
		"used, and opened again": func(b *bench, code [32]byte) {
			b.tamper(1, `UPDATE invitation SET code = ?, used_us = NULL, request = NULL, response = NULL WHERE name = 'alice'`, code[:])
		},
		"a device's": func(b *bench, code [32]byte) {
			b.tamper(1, `INSERT INTO invitation (code, kind, name, display, floor, created_us, expires_us, roles, number, seal)
				SELECT ?, 'client', 'eve', '', 0, created_us, 9e15, '[]', number, seal FROM invitation WHERE kind = 'device'`, code[:])
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.enrol("alice")
			code := enrol.NewActivationCode(b.keys.Root().RootHash(), [13]byte{1})
			forge(b, sha256.Sum256([]byte(code.String())))
			b.forgeries(func() {
				if _, err := b.Enrol(t.Context(), b.stranger().request(code)); !errors.Is(err, protocol.CodeRefused) {
					t.Errorf("enrolled: %v", err)
				}
			})
		})
	}
}

// TestUsedInvitationPutBack: a row as it was before its code was used, seal and all, does
// not open the code again.
func TestUsedInvitationPutBack(t *testing.T) {
	b := newBench(t)
	code := b.invite(store.KindClient, "alice")
	seal := column[[]byte](b, `SELECT seal FROM invitation WHERE name = 'alice'`)
	if _, err := b.Enrol(t.Context(), b.stranger().request(code)); err != nil {
		t.Fatal(err)
	}
	b.tamper(1, `UPDATE invitation SET used_us = NULL, request = NULL, response = NULL, seal = ? WHERE name = 'alice'`, seal)
	b.tamper(1, `UPDATE client SET name = 'gone' WHERE name = 'alice'`)
	b.forgeries(func() {
		if _, err := b.Enrol(t.Context(), b.stranger().request(code)); !errors.Is(err, protocol.CodeRefused) {
			t.Errorf("enrolled: %v", err)
		}
	})
}

// TestTrigger: a trigger that lends a role between check and transaction ends all writing.
func TestTrigger(t *testing.T) {
	b := newBench(t)
	alice, bob := b.enrol("alice"), b.enrol("bob")
	expect(t, alice.challenge(door, nil).mustApprove(), protocol.ResultApproved, 0)
	s := bob.challenge(door, nil)
	b.tamper(0, `CREATE TRIGGER lend AFTER INSERT ON record BEGIN UPDATE client SET roles = '["approver"]' WHERE name = 'bob'; END`)
	b.forgeries(func() {
		if _, err := s.send(s.m3(protocol.Approve)); !errors.Is(err, store.ErrForged) || !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("with a trigger: %v", err)
		}
	})
}

// mustApprove approves.
func (s *session) mustApprove() answer { return s.must(s.m3(protocol.Approve)) }

// TestSwappedNames: who is revoked is who is called so.
func TestSwappedNames(t *testing.T) {
	b := newBench(t)
	b.enrol("alice")
	b.enrol("bob")
	b.tamper(1, `UPDATE client SET name = 'x' WHERE name = 'alice'`)
	b.tamper(1, `UPDATE client SET name = 'alice' WHERE name = 'bob'`)
	b.tamper(1, `UPDATE client SET name = 'bob' WHERE name = 'x'`)
	b.forgeries(func() {
		if _, err := b.SetClientStatus(t.Context(), "alice", store.Revoked); !errors.Is(err, appliance.ErrForged) {
			t.Errorf("revoked somebody: %v", err)
		}
	})
}

// TestForgedVote: a request that is said to be executed, or to have taken one vote, gives no
// backup.
func TestForgedVote(t *testing.T) {
	b := newBoard(t, "[quorum]\n\"key.backup\" = 3\n")
	ask := appliance.BackUp{Partial: true}
	if _, err := b.BackUpKeys(t.Context(), ask); !errors.Is(err, appliance.ErrQuorum) {
		t.Fatal(err)
	}
	b.tamper(1, `UPDATE change SET state = 'executed', required = 1, signed = '["local"]', ended_us = ? WHERE state = 'open'`, b.clock.Now().UnixMicro())
	b.forgeries(func() {
		if _, err := b.BackUpKeys(t.Context(), ask); err == nil {
			t.Error("a backup that nobody voted for")
		}
	})
}

// TestForgedDevice: neither the name that a phone is shown nor the floor is anybody's to
// change, and a revoked device stays so.
func TestForgedDevice(t *testing.T) {
	for name, statement := range map[string]string{
		"display": `UPDATE device SET display = 'Charity box'`,
		"floor":   `UPDATE device SET floor = 0`,
		"status":  `UPDATE device SET status = 1`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			if name == "status" {
				if _, err := b.SetDeviceStatus(t.Context(), "gate", store.Revoked); err != nil {
					t.Fatal(err)
				}
			}
			b.tamper(1, statement)
			b.restart()
			b.forgeries(func() {
				if _, err := b.Device(t.Context(), b.device.SPIFFEID); !errors.Is(err, protocol.CodeDevice) {
					t.Errorf("it is a device: %v", err)
				}
			})
		})
	}
}

// TestForgedLimits: what a client has used up stays used up.
func TestForgedLimits(t *testing.T) {
	b := newBench(t)
	alice := b.enrolFull("alice")
	expect(t, alice.challenge(payment, eur(6000)).withRight(), protocol.ResultApproved, 0)
	for _, statement := range []string{
		`UPDATE restraint SET windows = NULL`, `UPDATE restraint SET highest = 4294967295`, `UPDATE restraint SET wrong = 0, begun = NULL, until_us = 1`,
	} {
		before := column[[]byte](b, `SELECT seal FROM restraint`)
		b.tamper(1, statement)
		s := alice.challenge(payment, eur(6000))
		b.forgeries(func() { expect(t, s.withRight(), protocol.ResultDenied, protocol.CodeRefused) })
		if string(before) != string(column[[]byte](b, `SELECT seal FROM restraint`)) {
			t.Errorf("%s was sealed", statement)
		}
	}
}

// TestPolicyOfNobody: a policy that was not applied is not in force, now or after a start.
func TestPolicyOfNobody(t *testing.T) {
	b := newBench(t)
	b.tamper(1, `INSERT INTO policy (version, document, activated_us, seal) SELECT 2, ?, activated_us, seal FROM policy`,
		[]byte("[[service]]\nid = 100\nname = \"door\"\nlevel = 1\n"))
	b.forgeries(func() {
		if p, err := b.store.ActivePolicy(t.Context()); err != nil || p.Version != 1 {
			t.Errorf("policy %d is in force: %v", p.Version, err)
		}
	})
	a, err := appliance.New(t.Context(), appliance.Config{Store: b.store, Keys: b.keys, Logger: hclog.NewNullLogger(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := a.Policy(t.Context()); err != nil || p.Version != 1 {
		t.Errorf("after a start policy %d is in force: %v", p.Version, err)
	}
}
