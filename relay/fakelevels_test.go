package relay

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"slices"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// levels is the part of the fake above level 1.
type levels struct {
	clientCA signingKey
	clients  map[protocol.ClientID]protocol.PublicKey
	uvKeys   map[protocol.ClientID]protocol.PublicKey // in the clients' certificates
	isThree  bool                                     // approvals are by the UV key, with a password
	isFour   bool                                     // ordinary approvals wait for a second approver
	retries  int                                      // countersignatures answered "retry" before the next one counts
	limit    int                                      // approvals left; below 0: without limit
	oldCAs   []*x509.Certificate
	waiting  map[string]*approval
}

// approval is a first countersignature that waits, by its next handle.
type approval struct {
	opened   *opened
	decision receipt.Decision
}

func newLevels(t testing.TB) levels {
	return levels{
		clientCA: newSigningKey(t), clients: map[protocol.ClientID]protocol.PublicKey{},
		uvKeys: map[protocol.ClientID]protocol.PublicKey{}, limit: -1, waiting: map[string]*approval{},
	}
}

// challenge returns P2, or its error form if the order lacks the service.
func (f *fake) challenge(o *opened) message.P2 {
	p1, err := message.ParseP1(o.p1)
	must(f.t, err)
	order := o.request.Order
	p2 := message.P2{
		TTL: f.ttl, Now: uint32(time.Now().Unix()), Level: 1, Factors: protocol.FactorSignature, Device: f.deviceID().Handle(),
		DeviceName: "Front door", Amount: order.Amount, Text: order.Text,
	}
	if o.request.Strict {
		p2.Factors |= protocol.FactorStrict
	}
	switch {
	case !slices.Contains(order.Services, p1.Service):
		return message.P2{Code: protocol.CodeService}
	case p1.Service == protocol.ServiceCoApproval:
		o.first = f.waiting[string(o.request.Handle)]
		if o.first == nil || !slices.Contains(order.Services, o.first.decision.Service) {
			return message.P2{Code: protocol.CodeService}
		}
		first, err := message.ParseP2(o.first.opened.p2)
		must(f.t, err)
		d := o.first.decision
		p2.Level, p2.Amount, p2.Text, p2.FirstStatement, p2.FirstService = first.Level, first.Amount, first.Text, &d.Statement, &d.Service
	case f.isThree:
		p2.Level, p2.Factors = 3, p2.Factors|protocol.FactorPassword|protocol.FactorUV
	case f.isFour && p1.Service >= protocol.FirstService:
		p2.Level, p2.Factors = 4, p2.Factors|protocol.FactorSecondApprover
	}
	return p2
}

// undecided returns the answers without a decision.
func (f *fake) undecided(o *opened, p1 message.P1, v protocol.Verdict) (p4 message.P4, isOver bool) {
	switch {
	case f.retries > 0:
		left := uint64(f.retries)
		f.retries--
		return message.P4{Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: &left}, true
	case o.first != nil && v != protocol.Approve:
		return message.P4{Reason: protocol.CodeUserRefused}, true
	case p1.Service == protocol.ServiceStatus:
		return message.P4{Result: protocol.ResultApproved, Asked: &message.AskedResult{Reason: protocol.CodeExpired}}, true
	case p1.Service == protocol.ServiceDryRun:
		return message.P4{Result: protocol.ResultApproved}, true
	case f.limit == 0:
		return message.P4{Reason: protocol.CodeLimit}, true
	case f.limit > 0:
		f.limit--
	}
	return message.P4{}, false
}

func (f *fake) giveBack(o deviceapi.OutcomeRequest) {
	if _, known := f.outcomes[o.Transaction]; !known && !o.Performed {
		f.limit++
	}
}

// rise turns a decision into one of level 4 or of a strict device; next is the handle of a
// decision that waits.
func (f *fake) rise(o *opened, d *receipt.Decision, p3 message.P3) (next []byte) {
	if o.request.Strict {
		d.Evidence = []receipt.Evidence{f.evidence(o, p3)}
	}
	p2, err := message.ParseP2(o.p2)
	must(f.t, err)
	d.Level = p2.Level
	if o.first != nil {
		first := o.first.decision
		second := d.Statement
		d.SecondStatement, d.Statement, d.Transaction, d.Service, d.Pairwise = &second, first.Statement, first.Transaction, first.Service, first.Pairwise
		d.Amount, d.Factors = first.Amount, first.Factors|protocol.FactorSecondApprover
		if o.request.Strict {
			d.Evidence = []receipt.Evidence{first.Evidence[0], d.Evidence[0]}
		}
		return nil
	}
	if d.Level != 4 || d.Result != protocol.ResultApproved {
		return nil
	}
	d.Result = protocol.ResultPending
	handle := rand.Text()
	f.waiting[handle] = &approval{o, *d}
	return []byte(handle)
}

func (f *fake) evidence(o *opened, p3 message.P3) receipt.Evidence {
	p1, err := message.ParseP1(o.p1)
	must(f.t, err)
	certified := trust.ClientCert{Client: p1.Client, SigningKey: f.clients[p1.Client]}
	if uv, has := f.uvKeys[p1.Client]; has {
		certified.UVKey = &uv
	}
	return receipt.Evidence{
		Statement:  message.NewStatement(f.root.public(f.t).RootID(), o.p1, o.chal, o.p2),
		ClientCert: f.clientCert(certified), Approval: p3.Approval(), Signature: p3.Signature,
	}
}

// clientCert signs a client's certificate.
func (f *fake) clientCert(c trust.ClientCert) []byte {
	now := uint64(time.Now().Unix())
	c.NotBefore, c.NotAfter = now-60, now+60
	cert, err := trust.SignClientCert(context.Background(), f.clientCA, 1, c)
	must(f.t, err)
	return cert
}

// rotateCA replaces the fake's ca; certificates of devices stay valid.
func (f *fake) rotateCA(isCertified bool) {
	f.oldCAs = append(f.oldCAs, f.caCert)
	f.ca, f.caCert = newSigningKey(f.t), nil
	f.caCert = f.certificate(&x509.Certificate{
		Subject: pkix.Name{CommonName: "ca 2"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, &f.ca.PublicKey)
	if isCertified {
		f.keyCerts = append(f.keyCerts, f.keyCert(trust.UseCA, 2, f.ca.public(f.t)))
	}
}

func writeEmpty(t testing.TB, name string) {
	t.Helper()
	must(t, os.WriteFile(name, nil, 0o600))
}

func (f *fake) seal(o *opened, m3 []byte, p4 message.P4, decision []byte) deviceapi.CountersignResponse {
	var r message.ReceiptNonce
	_, _ = rand.Read(r[:])
	return deviceapi.CountersignResponse{M4: o.channel.SealM4(m3, r, p4.Marshal()), Result: p4.Result, Decision: decision}
}

func (f *fake) decide(o *opened, m3 []byte, p3 message.P3) deviceapi.CountersignResponse {
	p1, err := message.ParseP1(o.p1)
	must(f.t, err)
	if p4, isOver := f.undecided(o, p1, p3.Verdict); isOver {
		return f.seal(o, m3, p4, nil)
	}
	result := protocol.ResultApproved
	if p3.Verdict != protocol.Approve {
		result = protocol.ResultDenied
	}
	d := receipt.Decision{
		Result: result, Statement: message.NewStatement(f.root.public(f.t).RootID(), o.p1, o.chal, o.p2).Hash(), Transaction: o.tx,
		Level: 1, Factors: protocol.FactorSignature, IssuedAt: uint64(time.Now().Unix()), Lifetime: 60, Device: f.deviceID(),
		Service: p1.Service, Amount: o.request.Order.Amount, U: o.u, Pairwise: protocol.PairwiseID{7},
	}
	next := f.rise(o, &d, p3)
	if f.mutate != nil {
		f.mutate(&d)
	}
	d.Reason, _ = receipt.ReasonFor(d.Result)
	var signed []byte
	if f.sign != nil {
		signed = f.sign(d)
	} else {
		signed, err = receipt.Sign(context.Background(), f.decision, f.epoch, d)
		must(f.t, err)
	}
	p4 := message.P4{Result: result}
	if result == protocol.ResultDenied {
		p4.Reason = protocol.CodeUserRefused
	}
	if next != nil {
		p4 = message.P4{Result: protocol.ResultPending, Reason: protocol.CodePending}
	}
	answer := f.seal(o, m3, p4, signed)
	answer.NextHandle = next
	if f.answer != nil {
		f.answer(&answer)
	}
	return answer
}
