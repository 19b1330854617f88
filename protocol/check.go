package protocol

import (
	"fmt"
	"slices"
	"time"
)

// Keyring is what a verifier of decisions holds: a root and certificates under it.
type Keyring struct {
	Root     PublicKey
	KeyCerts [][]byte // of uses decision and, for strict devices, client-ca; others do no harm
	Now      uint64   // Unix seconds
}

// keysFor gives the keys of a use whose certificates are good now and not
// ruled out by the minimum epoch of a newer one, of the epochs that kid may stand
// for.
func (k Keyring) keysFor(use Use, kid byte) []PublicKey {
	var good []KeyCert
	var minimum uint64
	for _, b := range k.KeyCerts {
		s, c, err := parseKeyCert(b)
		if err != nil || c.Use != use || c.begins() > k.Now || ruledOut(c.Epoch, c.MinEpoch) || c.verify(s, k.Root) != nil {
			continue
		}
		// A certificate that is over still rules out the epochs below its minimum.
		if c.MinEpoch != nil {
			minimum = max(minimum, *c.MinEpoch)
		}
		if c.NotAfter >= k.Now && byte(c.Epoch) == kid {
			good = append(good, c)
		}
	}
	var keys []PublicKey
	for _, c := range good {
		if c.Epoch >= minimum {
			keys = append(keys, c.Key)
		}
	}
	return keys
}

// Verify reads a decision in either form and checks that its signature chains to
// the root: CodeFormat or CodeCertificate. It says nothing of whether the decision
// is for this device, or fresh: a device uses [DecisionCheck].
func (k Keyring) Verify(b []byte) (Decision, error) {
	s, err := parseSigned(b)
	if err != nil {
		return Decision{}, err
	}
	d, err := ParseDecision(s.payload)
	if err != nil {
		return Decision{}, err
	}
	err = certificateError("no key certificate of decision with kid %d", s.kid)
	for _, key := range k.keysFor(UseDecision, s.kid) {
		if err = s.verify(key, domainDecision); err == nil {
			return d, nil
		}
	}
	return Decision{}, err
}

// DecisionCheck is what a device knows when a decision arrives, PROTOCOL.md §3.1.
type DecisionCheck struct {
	Root       PublicKey
	KeyCerts   [][]byte
	Now        uint64   // Unix seconds, for the dates of certificates only
	Begun      []RootID // under which the statements may be beside Root's: what was pinned when each apply was sent
	Device     DeviceID
	Nonce      Nonce         // of the newest apply
	Challenges []Challenge   // bytes 1..16 of the M2 forwarded; of both, in order, if the apply carried a handle
	Services   []Service     // the order's, or those accepted without one
	Amount     *Amount       // the order's; nil: taken from the decision
	Floor      Level         // 0: none
	Elapsed    time.Duration // by the monotonic clock, since M3 was first sent
	Strict     bool          // the device asked for evidence
}

// Verify says whether the decision is for this device, request and order, in
// the order of checks of PROTOCOL.md §3.1: CodeFormat, CodeCertificate, CodeDevice,
// CodeReplayed, CodePolicy, CodeLevel, CodeExpired, then the strict evidence. A
// decision that passes is not yet an approval: the device acts on
// [ResultApproved] only, and only once.
func (c DecisionCheck) Verify(decision []byte) (Decision, error) {
	keys := Keyring{Root: c.Root, KeyCerts: c.KeyCerts, Now: c.Now}
	d, err := keys.Verify(decision)
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

func (c DecisionCheck) checkRequest(d Decision) error {
	if d.Device != c.Device {
		return fmt.Errorf("decision for device %v: %w", d.Device, CodeDevice)
	}
	if len(c.Challenges) == 0 || NewChallenge(c.Nonce, d.U) != c.newest() {
		return fmt.Errorf("decision is not on the challenge that was forwarded: %w", CodeReplayed)
	}
	if d.SecondStatement != nil && len(c.Challenges) < 2 {
		return fmt.Errorf("decision of a second approver that was not asked for: %w", CodeReplayed)
	}
	return nil
}

// newest is the challenge that field 17 of the decision belongs to.
func (c DecisionCheck) newest() Challenge { return c.Challenges[len(c.Challenges)-1] }

func (c DecisionCheck) checkOrder(d Decision) error {
	if d.Service < FirstService || !slices.Contains(c.Services, d.Service) {
		return fmt.Errorf("decision for service %v: %w", d.Service, CodePolicy)
	}
	if c.Amount != nil && !sameAmount(d.Amount, c.Amount) {
		return fmt.Errorf("decision for %v, ordered %v: %w", d.Amount, *c.Amount, CodePolicy)
	}
	return nil
}

func sameAmount(a, b *Amount) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (c DecisionCheck) checkTime(d Decision) error {
	if d.Level < c.Floor {
		return fmt.Errorf("decision of level %d, floor %d: %w", d.Level, c.Floor, CodeLevel)
	}
	if c.Elapsed > seconds(d.Lifetime) {
		return fmt.Errorf("decision is over, %v after the countersignature: %w", c.Elapsed, CodeExpired)
	}
	return nil
}

// checkedEvidence is evidence taken apart.
type checkedEvidence struct {
	Evidence
	fields StatementFields
	cert   parsedClientCert
}

// checkEvidence verifies the countersignatures themselves, PROTOCOL.md §3.1: of
// all of them first the format, then the certificates, then the signatures, then
// what they say.
func (c DecisionCheck) checkEvidence(keys Keyring, d Decision) error {
	if len(d.Evidence) == 0 {
		return formatError("decision has no evidence")
	}
	all := make([]checkedEvidence, len(d.Evidence))
	for i, e := range d.Evidence {
		var err error
		if all[i], err = parseEvidence(e); err != nil {
			return err
		}
	}
	for _, e := range all {
		if err := e.checkCertificate(keys); err != nil {
			return err
		}
	}
	for _, e := range all {
		if err := e.checkSignature(); err != nil {
			return err
		}
	}
	return c.checkStatements(d, all)
}

func parseEvidence(e Evidence) (checkedEvidence, error) {
	fields, err := ParseStatement(e.Statement)
	if err != nil {
		return checkedEvidence{}, err
	}
	cert, err := parseClientCert(e.ClientCert)
	return checkedEvidence{Evidence: e, fields: fields, cert: cert}, err
}

func (e checkedEvidence) checkCertificate(keys Keyring) error {
	err := certificateError("no key certificate of client-ca with kid %d", e.cert.kid)
	for _, ca := range keys.keysFor(UseClientCA, e.cert.kid) {
		if err = e.cert.verify(ca, keys.Now); err == nil {
			return nil
		}
	}
	return err
}

func (e checkedEvidence) checkSignature() error {
	key, ok := e.cert.KeyOf(e.Approval.Slot)
	if !ok {
		return fmt.Errorf("certificate of client %v has no key for slot %d: %w", e.cert.Client, e.Approval.Slot, CodeSignature)
	}
	return VerifyCountersign(key, e.Statement, e.Approval, e.Signature[:])
}

func (c DecisionCheck) checkStatements(d Decision, all []checkedEvidence) error {
	hashes, challenges := [][32]byte{d.Statement}, []Challenge{c.newest()}
	services := []Service{d.Service}
	if d.SecondStatement != nil {
		hashes, challenges = append(hashes, *d.SecondStatement), []Challenge{c.Challenges[0], c.newest()}
		services = append(services, ServiceCoApproval)
	}
	for i, e := range all {
		switch f := e.fields; {
		case e.Statement.Hash() != hashes[i]:
			return evidenceError("statement is not the one decided on")
		case f.Challenge != challenges[i] || f.Root != c.Root.RootID() && !slices.Contains(c.Begun, f.Root):
			return evidenceError("statement is over another challenge or root")
		case f.P1.Service != services[i]:
			return evidenceError("statement is for another service")
		case (services[i] == ServiceCoApproval) != (f.P2.FirstStatement != nil):
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
func (c DecisionCheck) checkStatement(d Decision, e checkedEvidence) error {
	switch f := e.fields; {
	case f.P1.Client != e.cert.Client:
		return evidenceError("statement is another client's")
	case f.P2.Level != d.Level:
		return evidenceError("statement is of another level")
	case f.P2.Device != c.Device.Handle():
		return evidenceError("statement is for another device")
	case !sameAmount(f.P2.Amount, d.Amount):
		return evidenceError("statement is for another amount")
	case d.Result == ResultApproved && e.Approval.Verdict != Approve:
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

func evidenceError(what string) error { return fmt.Errorf("evidence: %s: %w", what, CodePolicy) }
