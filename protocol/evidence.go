package protocol

import "fmt"

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
		case f.Challenge != challenges[i] || f.Root != c.Root.RootID():
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
