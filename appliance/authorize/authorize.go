// Package authorize answers the two messages of an authorization that a device relays from
// a phone: Apply answers M1 with a challenge, Countersign answers M3 with a decision. A
// request goes one way: open, evidence, decide, commit, sign, answer. Nothing is signed
// before it is durable, and nothing that was denied reaches the signer.
package authorize

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/keyuse"
	"countersign/appliance/parties"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/internal/bounded"
	"countersign/internal/clock"
	"countersign/protocol"
	"countersign/protocol/derive"
)

// Service authorizes what phones ask for. It is safe for concurrent use.
type Service struct {
	store    store.Store
	keys     *keyuse.Keys
	parties  *parties.Parties
	rules    *rules.Rules
	log      hclog.Logger
	now      func() time.Time
	boot     func() clock.Boot // the host's own count of time
	refusal  time.Duration
	handles  handleKeys
	pairs    bounded.Map[pair, protocol.PairwiseID] // the token's results, which never change
	failures failures
	refusals refusals
	checks   checks
	metrics  metrics
}

// Config holds what a Service needs.
type Config struct {
	Store   store.Store
	Keys    *keyuse.Keys
	Parties *parties.Parties
	Rules   *rules.Rules
	Logger  hclog.Logger
	Metrics prometheus.Registerer // nil: not registered anywhere
	// RefusalTime is the least time that a refused countersignature takes, so
	// that its length does not show the reason; 0: 50 ms.
	RefusalTime time.Duration
	Now         func() time.Time
}

// defaultRefusalTime is long beside the work and its spread, and short for a person.
const defaultRefusalTime = 50 * time.Millisecond

// New returns a service.
func New(c Config) *Service {
	if c.RefusalTime == 0 {
		c.RefusalTime = defaultRefusalTime
	}
	return &Service{
		store: c.Store, keys: c.Keys, parties: c.Parties, rules: c.Rules, log: c.Logger, now: c.Now, boot: clock.Now,
		refusal: c.RefusalTime, metrics: newMetrics(c.Metrics),
	}
}

// pair is a client at a device.
type pair struct {
	client protocol.ClientID
	device protocol.DeviceID
}

// pairwise returns the handle by which a device knows a client, PROTOCOL.md §3.1 field 11.
func (a *Service) pairwise(ctx context.Context, p pair) (protocol.PairwiseID, error) {
	id, known := a.pairs.Get(p)
	if known {
		return id, nil
	}
	key, err := a.keys.PairwiseKey()
	if err != nil {
		return id, err
	}
	mac, err := a.keys.MAC(ctx, key, derive.PairwiseInput(p.client, p.device))
	if err != nil {
		return id, fmt.Errorf("pairwise id: %w", err)
	}
	copy(id[:], mac)
	a.pairs.Put(p, id)
	return id, nil
}
