package receipt

import (
	"fmt"
	"time"

	"countersign/protocol"
	"countersign/protocol/trust"
)

// GivenUpError means that a receipt is signed by a key that was given up as compromised, or under such a root: another
// party may have signed it.
type GivenUpError struct{ On uint64 } // Unix seconds

func (e *GivenUpError) Error() string {
	on := e.Date().Format(time.DateOnly)
	return fmt.Sprintf("it is signed under a key given up on %s: %v", on, protocol.CodeCertificate)
}

// Date returns when the key was given up.
func (e *GivenUpError) Date() time.Time { return time.Unix(int64(min(e.On, 1<<40)), 0).UTC() }

// Unwrap returns protocol.CodeCertificate.
func (e *GivenUpError) Unwrap() error { return protocol.CodeCertificate }

// VerifyKept verifies the decision that a client keeps as a receipt, PROTOCOL.md §2.2, and returns the key that
// signed it. The time of the decision judges the dates of the KeyCert, because the client's clock proves nothing.
// Errors are CodeFormat or CodeCertificate, with a [GivenUpError] if only a key that was given up verifies it. The
// decision may be about anything.
func VerifyKept(keys []trust.ReceiptKey, decision []byte) (d Decision, by trust.ReceiptKey, err error) {
	s, err := parseSigned(decision)
	if err != nil {
		return Decision{}, by, err
	}
	if d, err = Parse(s.payload); err != nil {
		return Decision{}, by, err
	}
	err = protocol.CodeCertificate.Errorf("no key certificate of decision with kid %d", s.kid)
	var given *GivenUpError
	for _, k := range keys {
		_, bad := Verify(trust.Keyring{Root: k.Root, KeyCerts: [][]byte{k.Raw}, Now: d.IssuedAt}, decision)
		switch {
		case bad != nil:
			err = bad
		case k.GivenUp == 0:
			return d, k, nil
		default:
			by, given = k, &GivenUpError{On: k.GivenUp}
		}
	}
	if given != nil {
		return d, by, given
	}
	return Decision{}, by, err
}
