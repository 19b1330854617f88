// Package policy parses policy documents, determines the level and factors that a request requires,
// and decides from evidence. It is the only package that knows what each level demands. It does no
// I/O, keeps no state and reads no clock.
package policy

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"countersign/protocol"
)

//go:embed policy.toml
var defaultDocument []byte

// Default returns a copy of the default policy document, which becomes version 1 unless the
// administrator brings another.
func Default() []byte { return slices.Clone(defaultDocument) }

// Policy is a valid policy document. It is immutable and safe for concurrent use. The zero value has
// no services and denies everything.
type Policy struct {
	hash     [sha256.Size]byte
	services map[protocol.Service]service
	approval Approval
	// accepted attestation formats of UV keys
	attestation    []string
	passwordLength int          // least of a new password, characters
	quorum         map[Kind]int // 1 to maxQuorum; 1 where it is absent; 0 for StoreBackup alone
	keysOnly       bool         // the admin socket does not count as an administrator
	ignored        []string
}

type service struct {
	id       protocol.Service
	name     string
	currency string // "" for a service without a price
	tiers    []tier // never empty; the first starts at 0; both fields rise
	sums     []cumulated
	ttl      time.Duration
	lifetime time.Duration
	limits   []Limit
}

// tier is the level required from an amount upward.
type tier struct {
	from  uint64 // minor units
	level protocol.Level
}

// Hash returns SHA-256 of the document's bytes, 32 bytes. Decisions carry the
// first 8 (PROTOCOL.md §3.1, field 13).
func (p *Policy) Hash() [sha256.Size]byte { return p.hash }

// Currency returns the currency of a service's amounts, "" for none.
func (p *Policy) Currency(service protocol.Service) string { return p.services[service].currency }

// Name returns the name of a service, "" for a service that the policy does not have.
func (p *Policy) Name(service protocol.Service) string { return p.services[service].name }

// Floors returns the least level of each service, in the order of service numbers.
// A client gets them at enrolment (PROTOCOL.md §4, §5).
func (p *Policy) Floors() []protocol.Floor {
	var floors []protocol.Floor
	for s := range maps.Values(p.services) {
		floors = append(floors, protocol.Floor{Service: s.id, MinLevel: s.tiers[0].level})
	}
	slices.SortFunc(floors, func(a, b protocol.Floor) int { return cmp.Compare(a.Service, b.Service) })
	return floors
}

// Limit bounds one client's use of a service within a sliding window.
type Limit struct {
	Window time.Duration // whole seconds, 1 minute to 31 days
	Count  uint64        // approvals per window; 0 is no bound
	Amount uint64        // sum of approved amounts per window, minor units; 0 is no bound
}

// The errors of [Policy.Level], each with the code of PROTOCOL.md §4 that answers it.
var (
	// ErrLevelUnavailable: the request asks for a level above 4 (7).
	ErrLevelUnavailable = errors.New("level not available")
	// ErrServiceUnknown: the policy has no such service (6).
	ErrServiceUnknown = errors.New("service not allowed")
	// ErrAmountRequired: the service has a price and the request no amount (25).
	ErrAmountRequired = errors.New("amount missing")
	// ErrAmountNotAllowed: the service has no price and the request an amount (28).
	ErrAmountNotAllowed = errors.New("amount not allowed")
	// ErrCurrency: the amount is not in the service's currency (28).
	ErrCurrency = errors.New("wrong currency")
	// ErrAmountTooLarge: the amount is above protocol.MaxMinor (28).
	ErrAmountTooLarge = errors.New("amount too large")
)

// Request is a request to be judged. Service is required; a level of zero requests nothing.
type Request struct {
	Service     protocol.Service
	Amount      *protocol.Amount // nil for a request without money
	Requested   protocol.Level   // by the client (P1.4)
	DeviceFloor protocol.Level   // by the device (apply key 4)
	Strict      bool             // the device wants the countersignature itself (apply key 7)
	// Spent has, for each of [Policy.Windows], the sum of the client's approvals of the service in its
	// currency, minor units, without this request. An absent window is 0.
	Spent map[time.Duration]uint64
}

// Grant is the policy's demand for a request.
type Grant struct {
	Service     protocol.Service
	ServiceName string
	Level       protocol.Level
	Factors     protocol.Factors // of the level, and FactorStrict if requested
	TTL         time.Duration    // of the challenge, whole seconds, 1 to 300
	Lifetime    time.Duration    // of the decision, whole seconds, 1 to 3600
	Limits      []Limit          // per client; all of them must hold
	Bounds      []Bound          // per client; Level suffices while all of them hold
}

// Level returns the demand for a request. Its level is the highest of the policy's for the amount,
// the policy's for the cumulated amounts, the requested one and the device's floor. Errors wrap one
// of the sentinels.
func (p *Policy) Level(r Request) (Grant, error) {
	s, ok := p.services[r.Service]
	if !ok {
		// The amount that the device orders is not the price of these.
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
	level := max(s.level(minor), s.cumulatedLevel(minor, r.Spent), highest)
	factors, _ := level.Factors()
	if r.Strict {
		factors |= protocol.FactorStrict
	}
	return Grant{
		Service: s.id, ServiceName: s.name, Level: level, Factors: factors,
		TTL: s.ttl, Lifetime: s.lifetime, Limits: slices.Clone(s.limits), Bounds: s.bounds(level),
	}, nil
}

// price checks the amount against the service and returns its minor units.
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
