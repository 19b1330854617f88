// Package authorize answers the two messages of an authorization that a device relays from
// a phone: Apply answers M1 with a challenge, Countersign answers M3 with a decision. A
// request goes one way: open, evidence, decide, commit, sign, answer. Nothing is signed
// before it is durable, and nothing that was denied reaches the signer.
package authorize

import (
	"context"
	"fmt"
	"strconv"
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

// metrics are the counters of the service. Labels are codes of PROTOCOL.md §4, a closed set;
// "0" is success.
type metrics struct {
	applies        *prometheus.CounterVec
	authorizations *prometheus.CounterVec
	repeats        prometheus.Counter
	damaged        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		applies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_applies_total", Help: "M1 answered, by the code sent to the phone.",
		}, []string{"code"}),
		authorizations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_authorizations_total", Help: "M3 answered, by result and reason.",
		}, []string{"result", "code"}),
		repeats: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "countersign_repeats_total", Help: "M3 answered from the stored outcome.",
		}),
	}
	m.damaged = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "countersign_damaged_verifiers_total", Help: "Password checks for which the stored verifier did not unwrap.",
	})
	if reg != nil {
		reg.MustRegister(m.applies, m.authorizations, m.repeats, m.damaged)
	}
	return m
}

func (m *metrics) applied(code protocol.Code) {
	m.applies.WithLabelValues(strconv.Itoa(int(code))).Inc()
}

func (m *metrics) settled(out store.Outcome) {
	if out.Replayed {
		m.repeats.Inc()
		return
	}
	m.authorizations.WithLabelValues(strconv.Itoa(int(out.Result)), strconv.Itoa(int(out.Reason))).Inc()
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
