package backup

import (
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/protocol/trust"
)

// counts verifies each row of a state under the roots in its settings, and finds what the
// state as of a time has against a decision key: a version in use that rules its epoch
// out, or its pair marked compromised. Errors wrap [ErrFile] or [ErrRuledOut].
func (s State) counts(by trust.KeyCert, at time.Time) error {
	keys, err := s.Settings.Verified(s.Keys)
	if err != nil {
		return fmt.Errorf("%v: %w", err, ErrFile)
	}
	for _, k := range keys {
		if k.Name != keyring.Decision {
			continue
		}
		label := keyring.Label(k.Name, k.Version)
		if !k.CompromisedAt.IsZero() && k.Point == by.Key {
			return fmt.Errorf("%s is marked compromised: %w", label, ErrRuledOut)
		}
		if k.RulesOut && k.Version > by.Epoch && inUse(k, at) {
			return fmt.Errorf("%s rules out every epoch before it, and %d signed: %w", label, by.Epoch, ErrRuledOut)
		}
	}
	return nil
}

// inUse reports whether a version has come into use by a time. One that was rotated to
// and taken back has not.
func inUse(k keyring.Key, at time.Time) bool {
	return !k.ActivatedAt.IsZero() && !k.ActivatedAt.After(at) && (k.RetiredAt.IsZero() || !k.RetiredAt.Before(k.ActivatedAt))
}
