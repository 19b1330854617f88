package authorize_test

import (
	"context"
	"errors"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/receipt"
)

// TestRefusalStaysRefused: a stored refusal that an attacker turns into an approval is not
// signed.
func TestRefusalStaysRefused(t *testing.T) {
	for name, change := range map[string]func(b *appliancetest.Bench, refused receipt.Decision){
		"result": func(b *appliancetest.Bench, d receipt.Decision) {
			d.Result, d.Reason, d.Factors = protocol.ResultApproved, 0, protocol.FactorSignature|protocol.FactorPassword
			b.Tamper(1, `UPDATE decision SET result = 1, reason = 0, payload = ? WHERE result = 0`, d.Marshal())
		},
		"result, and the client is revoked": func(b *appliancetest.Bench, d receipt.Decision) {
			if _, err := b.Parties.SetClientStatus(b.Context(), "alice", store.Revoked); err != nil {
				b.Fatal(err)
			}
			d.Result, d.Reason = protocol.ResultApproved, 0
			b.Tamper(1, `UPDATE decision SET result = 1, reason = 0, payload = ? WHERE result = 0`, d.Marshal())
		},
		"another decision": func(b *appliancetest.Bench, _ receipt.Decision) {
			b.Tamper(1, `UPDATE decision SET (result, reason, payload, seal) =
				(SELECT a.result, a.reason, a.payload, a.seal FROM decision a WHERE a.result = 1) WHERE result = 0`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.New(t)
			alice := b.EnrolFull("alice")
			expect(t, alice.Challenge(payment, eur(6000)).Right(), protocol.ResultApproved, 0)
			s := alice.Challenge(payment, eur(900_000))
			m3 := s.M3(protocol.Refuse)
			expect(t, s.Must(m3), protocol.ResultDenied, protocol.CodeUserRefused)
			refused, err := receipt.Parse(appliancetest.Column[[]byte](b, `SELECT payload FROM decision WHERE result = 0`))
			if err != nil {
				t.Fatal(err)
			}
			b.Forgeries(func() {
				change(b, refused)
				a, err := s.Send(m3)
				if err == nil && (a.Res.Decision != nil || a.P4.Result != protocol.ResultDenied) {
					t.Errorf("answered %s, with a decision of %d bytes", a.P4.Result, len(a.Res.Decision))
				}
			})
		})
	}
}

// lying is a store that alters outcomes, as if an attacker had a seal key or a driver had a
// defect.
type lying struct {
	store.Store
	lie func(*store.Outcome)
}

func (l *lying) Spend(ctx context.Context, s store.Spend) (store.Outcome, error) {
	out, err := l.Store.Spend(ctx, s)
	l.lie(&out)
	return out, err
}

// TestSignsWhatItMadeAgain: a stored decision is not signed if it differs from the one that
// handle, evidence and policy give, even under a valid seal.
func TestSignsWhatItMadeAgain(t *testing.T) {
	second := [32]byte{1}
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	liar := &lying{Store: b.Store}
	b.Store = liar
	b.Restart()
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
			s := alice.Challenge(payment, eur(200))
			b.Forgeries(func() {
				a, err := s.Send(s.With(0, nil))
				if err == nil && (a.Res.Decision != nil || a.P4.Result != protocol.ResultDenied || a.P4.Reason != protocol.CodeRefused) {
					t.Errorf("answered %s, code %d, with a decision of %d bytes", a.P4.Result, a.P4.Reason, len(a.Res.Decision))
				}
			})
		})
	}
	for name, lie := range map[string]func(*store.Outcome){
		"nothing":     func(*store.Outcome) {},
		"transaction": func(o *store.Outcome) { o.Decision.Transaction[0]++ }, // the record itself protects it
	} {
		liar.lie = lie
		if a := alice.Challenge(payment, eur(200)).Right(); a.Res.Decision == nil {
			t.Errorf("%s: no decision", name)
		}
	}
	// A user who refused has approved nothing, even if an approval is stored.
	liar.lie = func(o *store.Outcome) { o.Result, o.Reason, o.Decision.Result, o.Decision.Reason = 1, 0, 1, 0 }
	s := alice.Challenge(payment, eur(200))
	if a, err := s.Send(s.M3(protocol.Refuse)); err == nil && a.Res.Decision != nil {
		t.Error("a refusal was signed as an approval")
	}
}

// written answers an M3 with the outcome of another one, as if that were stored.
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

// TestEvidenceOfAnother: a stored approval is not signed for a countersignature that does not
// verify, even if everything else matches.
func TestEvidenceOfAnother(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	b.Store = &written{Store: b.Store}
	b.Restart()
	s := alice.Challenge(door, nil)
	if _, err := s.Send(s.With(0, nil)); err == nil {
		t.Fatal("nothing is unavailable")
	}
	alice.Key = appliancetest.NewSoftKey()
	b.Forgeries(func() {
		a, err := s.Send(s.With(0, nil))
		if err == nil && (a.Res.Decision != nil || a.P4.Result != protocol.ResultDenied) {
			t.Errorf("answered %s, code %d, with a decision of %d bytes", a.P4.Result, a.P4.Reason, len(a.Res.Decision))
		}
	})
}

// TestStolenUVKey: an attacker's UV key in the client's row, without a certificate, gives a
// strict device nothing.
func TestStolenUVKey(t *testing.T) {
	b := appliancetest.New(t)
	alice, thief := b.EnrolFull("alice"), appliancetest.NewSoftKey()
	point := thief.Point()
	b.Tamper(1, `UPDATE client SET uv_key = ?, cert = NULL`, point[:])
	alice.UV = &thief
	s, err := alice.ApplyWith(alice.P1(vault), deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{vault}}, Link: deviceapi.LinkWire, Strict: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Forgeries(func() { expect(t, s.Must(s.With(0, nil)), protocol.ResultDenied, protocol.CodeRefused) })
}

// TestCertificateOfTheClient: a new certificate is issued only for keys that a genuine
// certificate names, not if it is missing or another client's.
func TestCertificateOfTheClient(t *testing.T) {
	for name, spoil := range map[string]func(c, other *store.Client){
		"emptied":         func(c, _ *store.Client) { c.Cert = nil },
		"another's":       func(c, other *store.Client) { c.Cert = other.Cert },
		"cut off":         func(c, _ *store.Client) { c.Cert = c.Cert[:len(c.Cert)-1] },
		"another uv key":  func(c, _ *store.Client) { point := appliancetest.NewSoftKey().Point(); c.UVKey = &point },
		"without uv key":  func(c, _ *store.Client) { c.UVKey = nil },
		"its own (alive)": func(*store.Client, *store.Client) {},
	} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.New(t)
			alice := b.EnrolFull("alice")
			b.EnrolFull("bob")
			c, other := b.Client("alice"), b.Client("bob")
			spoil(&c, &other)
			c.Version++ // as the appliance itself would write it, with a valid seal
			if err := b.Store.UpdateClient(t.Context(), c, audit.NewRecord(audit.KindClients, "client/alice", nil)); err != nil {
				t.Fatal(err)
			}
			s, err := alice.ApplyWith(alice.P1(payment), deviceapi.ApplyRequest{
				Order: deviceapi.Order{Services: []protocol.Service{payment}, Amount: eur(6000)}, Link: deviceapi.LinkWire, Strict: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			a := s.Must(s.With(0, nil))
			if good := a.Res.Decision != nil; good != (name == "its own (alive)") {
				t.Errorf("answered %s, code %d, with a decision of %d bytes", a.P4.Result, a.P4.Reason, len(a.Res.Decision))
			}
		})
	}
}

// TestCertificateSpoiltLater: a stored approval is not repeated to a strict device after the client's certificate
// has become another's, and no new certificate is issued.
func TestCertificateSpoiltLater(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	s, err := alice.ApplyWith(alice.P1(vault), deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{vault}}, Link: deviceapi.LinkWire, Strict: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	m3 := s.With(0, nil)
	if a := s.Must(m3); a.Res.Decision == nil {
		t.Fatalf("answered %s, code %d", a.P4.Result, a.P4.Reason)
	}
	c := b.Client("alice")
	c.Cert = nil
	c.Version++ // as the appliance itself would write it, with a valid seal
	if err := b.Store.UpdateClient(t.Context(), c, audit.NewRecord(audit.KindClients, "client/alice", nil)); err != nil {
		t.Fatal(err)
	}
	b.Forgeries(func() {
		if a := s.Must(m3); a.Res.Decision != nil || a.P4.Result != protocol.ResultDenied {
			t.Errorf("answered %s, code %d, with a decision of %d bytes", a.P4.Result, a.P4.Reason, len(a.Res.Decision))
		}
	})
}

// TestTrigger: a trigger that grants a role between check and transaction stops all writing.
func TestTrigger(t *testing.T) {
	b := appliancetest.New(t)
	alice, bob := b.EnrolPhone("alice"), b.EnrolPhone("bob")
	expect(t, alice.Challenge(door, nil).Approve(), protocol.ResultApproved, 0)
	s := bob.Challenge(door, nil)
	b.Tamper(0, `CREATE TRIGGER lend AFTER INSERT ON record BEGIN UPDATE client SET roles = '["approver"]' WHERE name = 'bob'; END`)
	b.Forgeries(func() {
		if _, err := s.Send(s.M3(protocol.Approve)); !errors.Is(err, store.ErrForged) || !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("with a trigger: %v", err)
		}
	})
}

// TestForgedLimits: an attacker cannot reset what a client has used up.
func TestForgedLimits(t *testing.T) {
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	expect(t, alice.Challenge(payment, eur(6000)).Right(), protocol.ResultApproved, 0)
	challenges := []*appliancetest.Session{alice.Challenge(payment, eur(6000)), alice.Challenge(payment, eur(6000)), alice.Challenge(payment, eur(6000))}
	for i, statement := range []string{
		`UPDATE restraint SET windows = NULL`, `UPDATE restraint SET highest = 4294967295`, `UPDATE restraint SET wrong = 0, begun = NULL, until_us = 1`,
	} {
		before, s := appliancetest.Column[[]byte](b, `SELECT seal FROM restraint`), challenges[i]
		b.Tamper(1, statement)
		b.Forgeries(func() { expect(t, s.Right(), protocol.ResultDenied, protocol.CodeRefused) })
		if string(before) != string(appliancetest.Column[[]byte](b, `SELECT seal FROM restraint`)) {
			t.Errorf("%s was sealed", statement)
		}
	}
}
