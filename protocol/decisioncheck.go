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
	Now        uint64 // Unix seconds, for the dates of certificates only
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
