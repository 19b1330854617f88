package attack

import (
	"context"
	"fmt"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

// decisions shows a device true decisions that are not for it, and forged ones.
func decisions(ctx context.Context, a *Arena) {
	alice := a.Equipped(ctx, "decision-alice")
	true1 := decided(ctx, a, a.Pay(alice, 1200))
	true2 := decided(ctx, a, a.Pay(alice, 1200))
	a.Leaves(ctx, "decisions shown around", Nothing, func() {
		notForIt(a, true1, true2)
		resigned(ctx, a, true1, true2)
		certificates(ctx, a, true1)
		strictEvidence(ctx, a)
	})
}

// truth is a decision of the appliance and what the device knows.
type truth struct {
	check    receipt.Check
	signed   []byte
	decision receipt.Decision
}

func decided(ctx context.Context, a *Arena, ask Ask) (t truth) {
	s := ask.Must(ctx)
	_, r := a.Approve(ctx, s, Approved)
	t.check = s.Check()
	t.signed = r.Res.Decision
	t.decision = harness.Must(t.check.Verify(t.signed))
	return t
}

// shown is a decision with one thing that the device knows otherwise.
type shown struct {
	what   string
	change func(*receipt.Check)
	code   protocol.Code
}

// notForIt: true decisions at the wrong device, order or time.
func notForIt(a *Arena, one, two truth) {
	for _, c := range []shown{
		{"its own", func(*receipt.Check) {}, 0},
		{"another device", func(c *receipt.Check) { c.Device[7] ^= 1 }, protocol.CodeDevice},
		{"another nonce", func(c *receipt.Check) { c.Nonce[15] ^= 1 }, protocol.CodeReplayed},
		{"another challenge", func(c *receipt.Check) { c.Challenges = two.check.Challenges }, protocol.CodeReplayed},
		{"the next customer", func(c *receipt.Check) { c.Nonce, c.Challenges = two.check.Nonce, two.check.Challenges }, protocol.CodeReplayed},
		{"the approver's challenge", func(c *receipt.Check) { c.Challenges = append(c.Challenges, two.check.Challenges...) }, protocol.CodeReplayed},
		{"another service", func(c *receipt.Check) { c.Services = []protocol.Service{Door} }, protocol.CodePolicy},
		{"no service", func(c *receipt.Check) { c.Services = nil }, protocol.CodePolicy},
		{"another amount", func(c *receipt.Check) { c.Amount = Euros(4900) }, protocol.CodePolicy},
		{"another currency", func(c *receipt.Check) { c.Amount = &protocol.Amount{Minor: 1200, Currency: "USD"} }, protocol.CodePolicy},
		{"a higher floor", func(c *receipt.Check) { c.Floor = 2 }, protocol.CodeLevel},
		{"a day later", func(c *receipt.Check) { c.Elapsed = 24 * time.Hour }, protocol.CodeExpired},
		{"one second too late", func(c *receipt.Check) { c.Elapsed = seconds(one.decision.Lifetime) + time.Second }, protocol.CodeExpired},
		{"strict", func(c *receipt.Check) { c.Strict = true }, protocol.CodeFormat},
		{"another root", func(c *receipt.Check) { c.Root = NewKey().Point() }, protocol.CodeCertificate},
		{"no certificates", func(c *receipt.Check) { c.KeyCerts = nil }, protocol.CodeCertificate},
		{"when its certificate is over", func(c *receipt.Check) { c.Now += 100 * 366 * 24 * 3600 }, protocol.CodeCertificate},
		{"before its certificate", func(c *receipt.Check) { c.Now -= 366 * 24 * 3600 }, protocol.CodeCertificate},
	} {
		check := one.check
		c.change(&check)
		_, err := check.Verify(one.signed)
		a.Code("true decision, "+c.what, err, c.code)
	}
}

func seconds(n uint64) time.Duration { return time.Duration(n) * time.Second }

// resigned: the payload of one decision under a key, a certificate or a signature that
// is not its own.
func resigned(ctx context.Context, a *Arena, one, two truth) {
	m, mallory, root := &Mint{Ctx: ctx}, NewKey(), NewKey()
	cert := m.KeyCert(root, trust.KeyCert{Epoch: 1, Use: trust.UseDecision, Key: mallory.Point()})
	self := m.KeyCert(mallory, trust.KeyCert{Epoch: 1, Use: trust.UseDecision, Key: mallory.Point()})
	batch := m.Batch(mallory, one.decision, two.decision)
	bad := m.Decision(mallory, 1, one.decision)
	for _, c := range []struct {
		what   string
		signed []byte
		certs  [][]byte
	}{
		{"by a key that nobody certified", bad, nil},
		{"certified by another root", bad, [][]byte{cert}},
		{"certified by itself", bad, [][]byte{self}},
		{"under another kid", m.Decision(mallory, 2, one.decision), [][]byte{cert}},
		{"in a batch of another key", batch[0], [][]byte{cert}},
		{"payload of another", m.Splice(one.signed, two.signed, 2), nil},
		{"signature of another", m.Splice(one.signed, two.signed, 3), nil},
	} {
		check := one.check
		check.KeyCerts = append(c.certs, check.KeyCerts...)
		_, err := check.Verify(c.signed)
		a.Code("decision "+c.what, err, protocol.CodeCertificate)
	}
	for _, cert := range one.check.KeyCerts[:1] {
		for bit := range 8 * len(cert) {
			check := one.check
			check.KeyCerts = [][]byte{link.Flip(cert, bit)}
			_, err := check.Verify(one.signed)
			a.Code(fmt.Sprintf("bit %d of the key certificate %x", bit, cert), err, protocol.CodeCertificate)
		}
	}
}

// certificates: a domain whose root is honest and whose certificates are over, not
// yet valid, superseded, or for another use. The first case is good.
func certificates(ctx context.Context, a *Arena, one truth) {
	m, root, old, fresh := &Mint{Ctx: ctx}, NewKey(), NewKey(), NewKey()
	const day = 24 * 3600
	now, two, three := one.check.Now, uint64(2), uint64(3)
	cert := func(epoch uint64, key Key, change func(*trust.KeyCert)) []byte {
		k := trust.KeyCert{Epoch: epoch, Use: trust.UseDecision, Key: key.Point()}
		change(&k)
		return m.KeyCert(root, k)
	}
	as := func(*trust.KeyCert) {}
	good := cert(1, old, as)
	batch := m.Batch(old, one.decision, one.decision, one.decision)
	for _, c := range []struct {
		what   string
		signed []byte
		certs  [][]byte
		code   protocol.Code
	}{
		{"good", m.Decision(old, 1, one.decision), [][]byte{good}, 0},
		{"good, both epochs held", m.Decision(old, 1, one.decision), [][]byte{cert(2, fresh, as), good}, 0},
		{"good batch", batch[1], [][]byte{good}, 0},
		{"batch with another's leaf", m.Splice(batch[0], m.Batch(old, one.decision)[0], 1), [][]byte{good}, protocol.CodeFormat},
		{"expired", m.Decision(old, 1, one.decision), [][]byte{cert(1, old, func(k *trust.KeyCert) { k.NotAfter = now - 1 })}, protocol.CodeCertificate},
		{"not yet valid", m.Decision(old, 1, one.decision), [][]byte{cert(1, old, func(k *trust.KeyCert) { k.NotBefore, k.NotAfter = now+2*day, now+3*day })}, protocol.CodeCertificate},
		{"superseded by a minimum epoch", m.Decision(old, 1, one.decision), [][]byte{good, cert(2, fresh, func(k *trust.KeyCert) { k.MinEpoch = &two })}, protocol.CodeCertificate},
		{"superseded by one that is over itself", m.Decision(old, 1, one.decision), [][]byte{good, cert(2, fresh, func(k *trust.KeyCert) { k.MinEpoch, k.NotAfter = &two, now-1 })}, protocol.CodeCertificate},
		{"below its own minimum", m.Decision(fresh, 2, one.decision), [][]byte{cert(2, fresh, func(k *trust.KeyCert) { k.MinEpoch = &three })}, protocol.CodeCertificate},
		{"for the use kem", m.Decision(old, 1, one.decision), [][]byte{cert(1, old, func(k *trust.KeyCert) { k.Use = trust.UseKEM })}, protocol.CodeCertificate},
		{"for the use client-ca", m.Decision(old, 1, one.decision), [][]byte{cert(1, old, func(k *trust.KeyCert) { k.Use = trust.UseClientCA })}, protocol.CodeCertificate},
		{"by the key of another epoch", m.Decision(fresh, 1, one.decision), [][]byte{good, cert(2, fresh, as)}, protocol.CodeCertificate},
		{"by the root itself", m.Decision(root, 1, one.decision), [][]byte{good}, protocol.CodeCertificate},
	} {
		check := one.check
		check.Root, check.KeyCerts = root.Point(), c.certs
		_, err := check.Verify(c.signed)
		a.Code("key certificate "+c.what, err, c.code)
	}
}

// strictEvidence: the key `decision` is in the attacker's hands, client-ca and the
// phones are not. A strict device takes an approval that was countersigned for this
// challenge, and nothing else.
func strictEvidence(ctx context.Context, a *Arena) {
	d := &domain{Mint: &Mint{Ctx: ctx}, root: NewKey(), decision: NewKey(), ca: NewKey(), device: a.Till().ID}
	alice, bob := a.Stranger(), a.Stranger()
	certs := map[*Phone][]byte{alice: d.ClientCert(d.ca, alice), bob: d.ClientCert(d.ca, bob)}
	yes := d.ask(alice, Door)
	yesterday := d.ask(alice, Door)
	evidence := d.Evidence(alice, yes.statement, certs[alice])
	for _, c := range []struct {
		what   string
		change func(*receipt.Decision, *receipt.Evidence)
		code   protocol.Code
	}{
		{"what was countersigned", func(*receipt.Decision, *receipt.Evidence) {}, 0},
		{"another statement's hash", func(d *receipt.Decision, _ *receipt.Evidence) { d.Statement[0] ^= 1 }, protocol.CodePolicy},
		{"another level", func(d *receipt.Decision, _ *receipt.Evidence) { d.Level = 2 }, protocol.CodePolicy},
		{"an amount", func(d *receipt.Decision, _ *receipt.Evidence) { d.Amount = Euros(1) }, protocol.CodePolicy},
		{"another service", func(d *receipt.Decision, _ *receipt.Evidence) { d.Service = Vault }, protocol.CodePolicy},
		{"a countersignature of yesterday", func(x *receipt.Decision, e *receipt.Evidence) {
			*e = d.Evidence(alice, yesterday.statement, certs[alice])
			x.Statement = yesterday.statement.Hash()
		}, protocol.CodePolicy},
		{"a refusal", func(_ *receipt.Decision, e *receipt.Evidence) { e.Approval.Verdict = protocol.Refuse }, protocol.CodeSignature},
		{"a proof put in", func(_ *receipt.Decision, e *receipt.Evidence) { e.Approval.Proof = make([]byte, message.ProofSize) }, protocol.CodeSignature},
		{"the UV slot", func(_ *receipt.Decision, e *receipt.Evidence) { e.Approval.Slot = protocol.SlotUV }, protocol.CodeSignature},
		{"an altered signature", func(_ *receipt.Decision, e *receipt.Evidence) { e.Signature[63] ^= 1 }, protocol.CodeSignature},
		{"another's signature", func(_ *receipt.Decision, e *receipt.Evidence) { *e = d.Evidence(bob, yes.statement, certs[alice]) }, protocol.CodeSignature},
		{"another's certificate", func(_ *receipt.Decision, e *receipt.Evidence) { *e = d.Evidence(bob, yes.statement, certs[bob]) }, protocol.CodePolicy},
		{"a certificate by another ca", func(_ *receipt.Decision, e *receipt.Evidence) { e.ClientCert = d.ClientCert(NewKey(), alice) }, protocol.CodeCertificate},
		{"a certificate by the key decision", func(_ *receipt.Decision, e *receipt.Evidence) { e.ClientCert = d.ClientCert(d.decision, alice) }, protocol.CodeCertificate},
		{"no certificate", func(_ *receipt.Decision, e *receipt.Evidence) { e.ClientCert = []byte{0} }, protocol.CodeFormat},
	} {
		decision, own := yes.decision(d), evidence
		c.change(&decision, &own)
		decision.Evidence = []receipt.Evidence{own}
		_, err := d.check(yes).Verify(d.Decision(d.decision, 1, decision))
		a.Code("strict device, decision key stolen: "+c.what, err, c.code)
	}
	_, err := d.check(yes).Verify(d.Decision(d.decision, 1, yes.decision(d)))
	a.Code("strict device, decision key stolen: no evidence", err, protocol.CodeFormat)
}

// domain is a trust domain whose every key is here.
type domain struct {
	*Mint
	root, decision, ca Key
	device             protocol.DeviceID
}

// asked holds a challenge of the domain and the order that it belongs to.
type asked struct {
	service   protocol.Service
	nonce, u  protocol.Nonce
	statement message.Statement
}

func (d *domain) ask(p *Phone, service protocol.Service) asked {
	k := asked{service: service, nonce: protocol.Nonce(Random(16)), u: protocol.Nonce(Random(16))}
	p2 := message.P2{TTL: 90, Now: uint32(Now()), Level: 1, Factors: 17, Device: d.device.Handle(), DeviceName: "Gate"}
	root := d.root.Point()
	k.statement = message.NewStatement(root.RootID(), p.Next(service, 1).Marshal(), protocol.NewChallenge(k.nonce, k.u), p2.Marshal())
	return k
}

// decision approves the order.
func (k asked) decision(d *domain) receipt.Decision {
	return receipt.Decision{
		Result: protocol.ResultApproved, Statement: k.statement.Hash(), Level: 1, Factors: 1, IssuedAt: Now(), Lifetime: 60,
		Device: d.device, Service: k.service, U: k.u,
	}
}

func (d *domain) check(k asked) receipt.Check {
	return receipt.Check{
		Root: d.root.Point(), Now: Now(), Device: d.device, Nonce: k.nonce,
		Challenges: []protocol.Challenge{protocol.NewChallenge(k.nonce, k.u)}, Services: []protocol.Service{Door, Vault}, Strict: true,
		KeyCerts: [][]byte{
			d.KeyCert(d.root, trust.KeyCert{Epoch: 1, Use: trust.UseDecision, Key: d.decision.Point()}),
			d.KeyCert(d.root, trust.KeyCert{Epoch: 1, Use: trust.UseClientCA, Key: d.ca.Point()}),
		},
	}
}
