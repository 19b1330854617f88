package hostile

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/hostile/world"
)

// grant is a piece of authority that an operation gave: a decision, a certificate, an
// enrolment, a role, a key that is believed, a vote that was counted, a change that was
// made, a policy in force. The same words are the same grant; of those, a higher level is
// less.
type grant struct {
	what  string
	level uint64
}

func (g grant) String() string {
	if g.level == 0 {
		return g.what
	}
	return fmt.Sprintf("%s, level %d", g.what, g.level)
}

// within reports whether a grant is, or is less than, one of those that the untouched
// world gives.
func (g grant) within(honest []grant) bool {
	for _, h := range honest {
		if h.what == g.what && g.level >= h.level {
			return true
		}
	}
	return false
}

// scene is one run of an operation: at a house, by the people of a world.
type scene struct {
	*world.House
	*world.World
	place  world.Place
	grants []grant
	// salvaged is why a restore did not believe the database as a whole, nil if it did
	salvaged error
}

func (s *scene) grant(format string, args ...any) {
	s.grants = append(s.grants, grant{what: fmt.Sprintf(format, args...)})
}

// decided judges what a device got for a dialog, as a device does that pinned the true
// root: anything but a decision that verifies is nothing.
func (s *scene) decided(who string, d *world.Dialog, a world.Answer) {
	if a.Asked != nil && a.Asked.Result == protocol.ResultApproved {
		s.grant("%s is told that it was approved", who)
	}
	if len(a.Decision()) == 0 {
		return
	}
	epoch, got, err := s.verify(d, a.Decision())
	if err != nil || got.Result != protocol.ResultApproved && got.Result != protocol.ResultPending {
		return
	}
	what := fmt.Sprintf("%s %s: %s of %d at %s by decision@%d", who, got.Result, amount(got.Amount), got.Service, d.Ask.Device, epoch)
	if got.Statement != expected(d).Hash() {
		what += ", of another statement"
	}
	if got.Lifetime > honestLifetime {
		what += fmt.Sprintf(", for %d s", got.Lifetime)
	}
	if d.Answer.Decision() != nil && !bytes.Equal(d.Answer.M4, a.M4) {
		what += s.sameAsBefore(d, got)
	}
	s.grants = append(s.grants, grant{what, uint64(got.Level)})
	if got.Factors&^protocol.Factors(1<<uint(got.Level)-1) != 0 {
		s.grant("%s: factors %s at level %d", who, got.Factors, got.Level)
	}
}

// honestLifetime is how long a decision is good under every policy here, seconds.
const honestLifetime = 120

// expected is the statement of the decision on a dialog: of a second approval, the
// first's.
func expected(d *world.Dialog) message.Statement {
	if d.First != nil {
		return d.First.Statement()
	}
	return d.Statement()
}

// sameAsBefore: a repeated answer has the same transaction and the same time of issue.
func (s *scene) sameAsBefore(d *world.Dialog, got receipt.Decision) string {
	_, before, err := s.verify(d, d.Answer.Decision())
	switch {
	case err != nil:
		return ", where nothing was given"
	case before.Transaction != got.Transaction:
		return ", as another transaction"
	case before.IssuedAt != got.IssuedAt:
		return ", issued anew"
	}
	return ""
}

// verify checks a decision under each epoch that the true root certified.
func (s *scene) verify(d *world.Dialog, decision []byte) (epoch uint64, got receipt.Decision, err error) {
	certs, others := s.certificates()
	for _, cert := range certs {
		got, err = d.Check(s.Root, append([][]byte{cert.raw}, others...), s.House.Clock.Unix()).Verify(decision)
		if err == nil {
			return cert.Epoch, got, nil
		}
	}
	return 0, got, err
}

type certificate struct {
	trust.KeyCert
	raw []byte
}

// certificates are the genuine KeyCerts for decision and client-ca: the ones that devices had
// before, and the ones that the house returns now.
func (s *scene) certificates() (decision []certificate, clientCA [][]byte) {
	for _, raw := range append(append([][]byte{}, s.Certs...), s.House.Enrol.Trust().KeyCerts...) {
		cert, err := trust.VerifyKeyCert(raw, s.Root)
		switch {
		case err != nil:
		case cert.Use == trust.UseDecision:
			decision = append(decision, certificate{cert, raw})
		case cert.Use == trust.UseClientCA:
			clientCA = append(clientCA, raw)
		}
	}
	return decision, clientCA
}

func amount(a *protocol.Amount) string {
	if a == nil {
		return "nothing"
	}
	return fmt.Sprintf("%d %s", a.Minor, a.Currency)
}

// enrolled judges a client certificate, as a strict device does.
func (s *scene) enrolled(code string, cert []byte) {
	_, authorities := s.certificates()
	for _, raw := range authorities {
		ca, err := trust.VerifyKeyCert(raw, s.Root)
		if err != nil {
			continue
		}
		if _, err := trust.VerifyClientCert(cert, ca.Key, s.House.Clock.Unix()); err == nil {
			s.grant("client certificate for code %q", code)
			return
		}
	}
}

// certified judges an X.509 certificate by its name and by the authority that the true
// root certified.
func (s *scene) certified(what string, certificates []string) {
	if len(certificates) == 0 {
		return
	}
	block, _ := pem.Decode([]byte(certificates[0]))
	if block == nil {
		return
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(cert.URIs) != 1 {
		return
	}
	for _, raw := range append(slices.Clone(s.Genuine.KeyCerts(trust.UseCA)), s.House.Enrol.Trust().KeyCerts...) {
		ca, err := trust.VerifyKeyCert(raw, s.Root)
		if err == nil && ca.Use == trust.UseCA && signedBy(cert, ca.Key) {
			s.grant("%s: X.509 certificate of %s", what, cert.URIs[0])
			return
		}
	}
}

func signedBy(cert *x509.Certificate, ca protocol.PublicKey) bool {
	key, err := ca.ECDSA()
	if err != nil {
		return false
	}
	issuer := x509.Certificate{PublicKeyAlgorithm: x509.ECDSA, PublicKey: key}
	return issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}
