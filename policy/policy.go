// Package policy is the only place that knows what a level demands. It reads a
// policy document, says which level and factors a request needs, and decides
// from evidence. It does no I/O, keeps no state and asks no clock.
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

// Default returns a copy of the policy document that is loaded as version 1
// when the administrator brings none.
func Default() []byte { return slices.Clone(defaultDocument) }

// Policy is a policy document that has been checked. It never changes and may
// be used by many goroutines at once. The zero value knows no service, so it
// denies everything.
type Policy struct {
	hash     [sha256.Size]byte
	services map[protocol.Service]service
	approval Approval
	// attestation formats of UV keys that count
	attestation []string
	quorum      map[Kind]int // 1 to maxQuorum; 1 where it is absent
	keysOnly    bool         // the admin socket is no administrator
}

type service struct {
	id       protocol.Service
	name     string
	currency string // "" of a service without a price
	tiers    []tier // never empty; the first starts at 0; both fields rise
	ttl      time.Duration
	lifetime time.Duration
	limits   []Limit
}

// tier is the level demanded from an amount upward.
type tier struct {
	from  uint64 // minor units
	level protocol.Level
}

// Hash returns SHA-256 of the document's bytes, 32 bytes. Decisions carry the
// first 8 (PROTOCOL.md §3.1, field 13).
func (p *Policy) Hash() [sha256.Size]byte { return p.hash }

// Currency returns the currency of a service's amounts, "" where it has none.
func (p *Policy) Currency(service protocol.Service) string { return p.services[service].currency }

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

// Limit bounds what one client may use of one service within a window of time.
type Limit struct {
	Window time.Duration // whole seconds, 1 minute to 31 days
	Count  uint64        // approvals per window; 0 is no bound
	Amount uint64        // sum of approved amounts per window, minor units; 0 is no bound
}

// Start returns when the window that holds t began. Windows are aligned to
// 1970-01-01T00:00:00Z, so "24h" is a calendar day in UTC. The result is in UTC.
func (l Limit) Start(t time.Time) time.Time {
	window := int64(l.Window / time.Second)
	if window <= 0 {
		return t.UTC()
	}
	now := t.Unix()
	into := (now%window + window) % window
	return time.Unix(now-into, 0).UTC()
}

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
