package receipt

import (
	"fmt"
	"slices"
	"time"

	"countersign/protocol"
	"countersign/protocol/internal/domain"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// Verify decodes a decision in either form and verifies that its signature chains to the root.
// Errors are CodeFormat or CodeCertificate. It does not check that the decision is fresh and for
// this device: see [Check].
func Verify(k trust.Keyring, b []byte) (Decision, error) {
	s, err := parseSigned(b)
	if err != nil {
		return Decision{}, err
	}
	d, err := Parse(s.payload)
	if err != nil {
		return Decision{}, err
	}
	err = protocol.CodeCertificate.Errorf("no key certificate of decision with kid %d", s.kid)
	for _, key := range k.Keys(trust.UseDecision, s.kid) {
		if err = s.verify(key, domain.Decision); err == nil {
			return d, nil
		}
	}
	return Decision{}, err
}

// Check is a device's knowledge when a decision arrives, PROTOCOL.md §3.1.
type Check struct {
	Root       protocol.PublicKey
	KeyCerts   [][]byte
	Now        uint64            // Unix seconds, to check the dates of certificates
	Begun      []protocol.RootID // pinned when each apply was sent: statements may name these roots besides Root
	Device     protocol.DeviceID
	Nonce      protocol.Nonce       // of the newest apply
	Challenges []protocol.Challenge // bytes 1..16 of the forwarded M2; of both, in order, if the apply carried a handle
	Services   []protocol.Service   // the order's, or those accepted without one
	Amount     *protocol.Amount     // the order's; nil: take the decision's
	Floor      protocol.Level       // 0: none
	Elapsed    time.Duration        // since M3 was first sent, by the monotonic clock
	Strict     bool                 // the device asked for evidence
}

// Verify verifies that the decision is for this device, request and order. The order of checks is
// that in PROTOCOL.md §3.1: CodeFormat, CodeCertificate, CodeDevice, CodeReplayed, CodePolicy,
// CodeLevel, CodeExpired, then the strict evidence. A valid decision may still be a denial: the
// device acts on [protocol.ResultApproved] only, and only once.
func (c Check) Verify(decision []byte) (Decision, error) {
	keys := trust.Keyring{Root: c.Root, KeyCerts: c.KeyCerts, Now: c.Now}
	d, err := Verify(keys, decision)
	if err != nil {
		return Decision{}, err
	}
	for _, check := range []func(Decision) error{c.checkRequest, c.checkOrder, c.checkTime} {
		if err := check(d); err != nil {
			return Decision{}, err
		}
	}
	if c.Strict {
		if err := c.checkEvidence(keys, d); err != nil {
			return Decision{}, err
		}
	}
	return d, nil
}

func (c Check) checkRequest(d Decision) error {
	if d.Device != c.Device {
		return fmt.Errorf("decision for device %v: %w", d.Device, protocol.CodeDevice)
	}
	if len(c.Challenges) == 0 || protocol.NewChallenge(c.Nonce, d.U) != c.newest() {
		return fmt.Errorf("decision is not for the forwarded challenge: %w", protocol.CodeReplayed)
	}
	if d.SecondStatement != nil && len(c.Challenges) < 2 {
		return fmt.Errorf("decision of an unexpected second approver: %w", protocol.CodeReplayed)
	}
	return nil
}

// newest returns the challenge that field 17 of the decision belongs to.
func (c Check) newest() protocol.Challenge { return c.Challenges[len(c.Challenges)-1] }

func (c Check) checkOrder(d Decision) error {
	if d.Service < protocol.FirstService || !slices.Contains(c.Services, d.Service) {
		return fmt.Errorf("decision for service %v: %w", d.Service, protocol.CodePolicy)
	}
	if c.Amount != nil && !sameAmount(d.Amount, c.Amount) {
		return fmt.Errorf("decision for %v, ordered %v: %w", d.Amount, *c.Amount, protocol.CodePolicy)
	}
	return nil
}

func sameAmount(a, b *protocol.Amount) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (c Check) checkTime(d Decision) error {
	if d.Level < c.Floor {
		return fmt.Errorf("decision of level %d, floor %d: %w", d.Level, c.Floor, protocol.CodeLevel)
	}
	if c.Elapsed > protocol.Seconds(d.Lifetime) {
		return fmt.Errorf("decision has expired, %v after the countersignature: %w", c.Elapsed, protocol.CodeExpired)
	}
	return nil
}

// checkedEvidence is decoded evidence.
type checkedEvidence struct {
	Evidence
	fields  message.StatementFields
	cert    trust.ClientCert
	certErr error // of verifying the certificate
}

// checkEvidence verifies the countersignatures themselves, PROTOCOL.md §3.1: first the format of
// all, then the certificates, then the signatures, then the statements.
func (c Check) checkEvidence(keys trust.Keyring, d Decision) error {
	if len(d.Evidence) == 0 {
		return protocol.CodeFormat.Errorf("decision has no evidence")
	}
	all := make([]checkedEvidence, len(d.Evidence))
	for i, e := range d.Evidence {
		var err error
		if all[i], err = parseEvidence(keys, e); err != nil {
			return err
		}
	}
	for _, e := range all {
		if e.certErr != nil {
			return e.certErr
		}
	}
	for _, e := range all {
		if err := e.checkSignature(); err != nil {
			return err
		}
	}
	return c.checkStatements(d, all)
}

func parseEvidence(keys trust.Keyring, e Evidence) (checkedEvidence, error) {
	fields, err := message.ParseStatement(e.Statement)
	if err != nil {
		return checkedEvidence{}, err
	}
	cert, err := keys.ClientCert(e.ClientCert)
	if code, _ := protocol.CodeOf(err); code == protocol.CodeFormat {
		return checkedEvidence{}, err
	}
	return checkedEvidence{Evidence: e, fields: fields, cert: cert, certErr: err}, nil
}

func (e checkedEvidence) checkSignature() error {
	key, ok := e.cert.KeyOf(e.Approval.Slot)
	if !ok {
		return fmt.Errorf("certificate of client %v has no key for slot %d: %w", e.cert.Client, e.Approval.Slot, protocol.CodeSignature)
	}
	return message.VerifyCountersign(key, e.Statement, e.Approval, e.Signature[:])
}

func (c Check) checkStatements(d Decision, all []checkedEvidence) error {
	hashes, challenges := [][32]byte{d.Statement}, []protocol.Challenge{c.newest()}
	services := []protocol.Service{d.Service}
	if d.SecondStatement != nil {
		hashes, challenges = append(hashes, *d.SecondStatement), []protocol.Challenge{c.Challenges[0], c.newest()}
		services = append(services, protocol.ServiceCoApproval)
	}
	for i, e := range all {
		switch f := e.fields; {
		case e.Statement.Hash() != hashes[i]:
			return evidenceError("statement is not the one decided on")
		case f.Challenge != challenges[i] || f.Root != c.Root.RootID() && !slices.Contains(c.Begun, f.Root):
			return evidenceError("statement is over another challenge or root")
		case f.P1.Service != services[i]:
			return evidenceError("statement is for another service")
		case (services[i] == protocol.ServiceCoApproval) != (f.P2.FirstStatement != nil):
			return evidenceError("first statement is missing or misplaced")
		}
		if err := c.checkStatement(d, e); err != nil {
			return err
		}
	}
	if d.SecondStatement != nil {
		return checkSecond(d, all[0], all[1])
	}
	return nil
}

// checkStatement checks the conditions that apply to each statement.
func (c Check) checkStatement(d Decision, e checkedEvidence) error {
	switch f := e.fields; {
	case f.P1.Client != e.cert.Client:
		return evidenceError("statement is from another client")
	case f.P2.Level != d.Level:
		return evidenceError("statement has another level")
	case f.P2.Device != c.Device.Handle():
		return evidenceError("statement is for another device")
	case !sameAmount(f.P2.Amount, d.Amount):
		return evidenceError("statement is for another amount")
	case d.Result == protocol.ResultApproved && e.Approval.Verdict != protocol.Approve:
		return evidenceError("approved, but the client refused")
	}
	return nil
}

// checkSecond compares the approver's statement with the first.
func checkSecond(d Decision, first, second checkedEvidence) error {
	a, b := first.fields, second.fields
	switch {
	case a.P1.Client == b.P1.Client:
		return evidenceError("approver is the client itself")
	case *b.P2.FirstStatement != d.Statement: // checkStatements found it present
		return evidenceError("approver saw another statement")
	case *b.P2.FirstService != d.Service:
		return evidenceError("approver saw another service")
	case a.P2.DeviceName != b.P2.DeviceName || a.P2.Text != b.P2.Text:
		return evidenceError("approver saw another name or text")
	}
	return nil
}

func evidenceError(what string) error {
	return fmt.Errorf("evidence: %s: %w", what, protocol.CodePolicy)
}
