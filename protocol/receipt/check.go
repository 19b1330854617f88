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

// Verify reads a decision in either form and checks that its signature chains to
// the root: CodeFormat or CodeCertificate. It says nothing of whether the decision
// is for this device, or fresh: a device uses [Check].
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

// Check is what a device knows when a decision arrives, PROTOCOL.md §3.1.
type Check struct {
	Root       protocol.PublicKey
	KeyCerts   [][]byte
	Now        uint64            // Unix seconds, for the dates of certificates only
	Begun      []protocol.RootID // under which the statements may be beside Root's: what was pinned when each apply was sent
	Device     protocol.DeviceID
	Nonce      protocol.Nonce       // of the newest apply
	Challenges []protocol.Challenge // bytes 1..16 of the M2 forwarded; of both, in order, if the apply carried a handle
	Services   []protocol.Service   // the order's, or those accepted without one
	Amount     *protocol.Amount     // the order's; nil: taken from the decision
	Floor      protocol.Level       // 0: none
	Elapsed    time.Duration        // by the monotonic clock, since M3 was first sent
	Strict     bool                 // the device asked for evidence
}

// Verify says whether the decision is for this device, request and order, in
// the order of checks of PROTOCOL.md §3.1: CodeFormat, CodeCertificate, CodeDevice,
// CodeReplayed, CodePolicy, CodeLevel, CodeExpired, then the strict evidence. A
// decision that passes is not yet an approval: the device acts on
// [ResultApproved] only, and only once.
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
		return fmt.Errorf("decision is not on the challenge that was forwarded: %w", protocol.CodeReplayed)
	}
	if d.SecondStatement != nil && len(c.Challenges) < 2 {
		return fmt.Errorf("decision of a second approver that was not asked for: %w", protocol.CodeReplayed)
	}
	return nil
}

// newest is the challenge that field 17 of the decision belongs to.
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
		return fmt.Errorf("decision is over, %v after the countersignature: %w", c.Elapsed, protocol.CodeExpired)
	}
	return nil
}

// checkedEvidence is evidence taken apart.
type checkedEvidence struct {
	Evidence
	fields  message.StatementFields
	cert    trust.ClientCert
	certErr error // of verifying the certificate
}

// checkEvidence verifies the countersignatures themselves, PROTOCOL.md §3.1: of
// all of them first the format, then the certificates, then the signatures, then
// what they say.
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
			return evidenceError("statement names a first one where it may not, or none")
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

// checkStatement checks what holds for each statement.
func (c Check) checkStatement(d Decision, e checkedEvidence) error {
	switch f := e.fields; {
	case f.P1.Client != e.cert.Client:
		return evidenceError("statement is another client's")
	case f.P2.Level != d.Level:
		return evidenceError("statement is of another level")
	case f.P2.Device != c.Device.Handle():
		return evidenceError("statement is for another device")
	case !sameAmount(f.P2.Amount, d.Amount):
		return evidenceError("statement is for another amount")
	case d.Result == protocol.ResultApproved && e.Approval.Verdict != protocol.Approve:
		return evidenceError("approved, but the client refused")
	}
	return nil
}

// checkSecond checks the approver's statement against the first.
func checkSecond(d Decision, first, second checkedEvidence) error {
	a, b := first.fields, second.fields
	switch {
	case a.P1.Client == b.P1.Client:
		return evidenceError("approver is the client itself")
	case *b.P2.FirstStatement != d.Statement: // its presence is checked
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
