package policy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/protocol"
)

// The errors of [Policy.Level], with the code of PROTOCOL.md §4 that answers each.
var (
	// ErrLevelUnavailable: a level beyond 4 was asked for (7).
	ErrLevelUnavailable = errors.New("level not available")
	// ErrServiceUnknown: the policy has no such service (6).
	ErrServiceUnknown = errors.New("service not allowed")
	// ErrAmountRequired: a service with a price was asked for without an amount (12).
	ErrAmountRequired = errors.New("amount missing")
	// ErrAmountNotAllowed: a service without a price was asked for with an amount (12).
	ErrAmountNotAllowed = errors.New("amount not allowed")
	// ErrCurrency: the amount is not in the service's currency (12).
	ErrCurrency = errors.New("wrong currency")
	// ErrAmountTooLarge: the amount is above protocol.MaxMinor (12).
	ErrAmountTooLarge = errors.New("amount too large")
)

// Request is what a policy judges. Service is required; zero levels mean that
// nothing is asked for.
type Request struct {
	Service     protocol.Service
	Amount      *protocol.Amount // nil if the request is about no money
	Requested   protocol.Level   // asked for by the client (P1.4)
	DeviceFloor protocol.Level   // asked for by the device (apply key 4)
	Strict      bool             // the device wants the countersignature itself (apply key 7)
}

// Grant is what the policy demands for a request before it may be approved.
type Grant struct {
	Service     protocol.Service
	ServiceName string
	Level       protocol.Level
	Factors     protocol.Factors // of the level, and FactorStrict if asked for
	TTL         time.Duration    // of the challenge, whole seconds, 1 to 300
	Lifetime    time.Duration    // of the decision, whole seconds, 1 to 3600
	Limits      []Limit          // per client; all of them must hold
}

// Level says what a request needs: the highest of the policy's own level, the
// one requested and the device's floor. Errors wrap one of the sentinels.
func (p *Policy) Level(r Request) (Grant, error) {
	s, ok := p.services[r.Service]
	if !ok {
		// An amount that the device orders is no price of these.
		s, ok = reserved[r.Service]
		r.Amount = nil
	}
	if !ok {
		return Grant{}, fmt.Errorf("%w: service %d is not in the policy", ErrServiceUnknown, r.Service)
	}
	highest := max(r.Requested, r.DeviceFloor)
	if _, exists := highest.Factors(); !exists && highest != 0 {
		return Grant{}, fmt.Errorf("%w: %d", ErrLevelUnavailable, highest)
	}
	minor, err := s.price(r.Amount)
	if err != nil {
		return Grant{}, fmt.Errorf("service %d (%s): %w", s.id, s.name, err)
	}
	level := max(s.level(minor), highest)
	factors, _ := level.Factors()
	if r.Strict {
		factors |= protocol.FactorStrict
	}
	return Grant{
		Service: s.id, ServiceName: s.name, Level: level, Factors: factors,
		TTL: s.ttl, Lifetime: s.lifetime, Limits: slices.Clone(s.limits),
	}, nil
}

// price checks that the amount suits the service and returns its minor units.
func (s service) price(a *protocol.Amount) (uint64, error) {
	switch {
	case a == nil && s.currency == "":
		return 0, nil
	case a == nil:
		return 0, fmt.Errorf("%w: the price is in %s", ErrAmountRequired, s.currency)
	case s.currency == "":
		return 0, fmt.Errorf("%w: the service has no price", ErrAmountNotAllowed)
	case a.Currency != s.currency:
		return 0, fmt.Errorf("%w: %q where the price is in %s", ErrCurrency, a.Currency, s.currency)
	case a.Minor > protocol.MaxMinor:
		return 0, fmt.Errorf("%w: %d minor units", ErrAmountTooLarge, a.Minor)
	}
	return a.Minor, nil
}

// level returns the level of the last tier that the amount reaches.
func (s service) level(minor uint64) protocol.Level {
	level := s.tiers[0].level
	for _, t := range s.tiers {
		if minor >= t.from {
			level = t.level
		}
	}
	return level
}
