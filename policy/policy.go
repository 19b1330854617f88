// Package policy is the only place that knows what a level demands. It reads a
// policy document, says which level and factors a request needs, and decides
// from evidence. It does no I/O, keeps no state and asks no clock.
package policy

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
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
