package probe

import (
	"context"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	ours "countersign/hsm/pkcs11"
)

// Measure is the raw speed of signatures, derivations and MACs with the numbers of
// sessions that are ordered: what the service's own speed is compared with. The keys
// are token objects, as the appliance's are.
func Measure(ctx context.Context, cfg ours.Config, order Order) (report.Raw, error) {
	p, err := open(ctx, cfg, order)
	if err != nil {
		return report.Raw{}, err
	}
	defer p.close()
	p.token = true
	jobs, err := p.loopJobs()
	if err != nil {
		return report.Raw{}, fmt.Errorf("making keys to measure with: %v: %w", err, hsm.ErrUnavailable)
	}
	var raw report.Raw
	for _, j := range jobs {
		if len(order.Only) > 0 && !slices.Contains(order.Only, j.name) {
			continue
		}
		c := report.Curve{Operation: j.name}
		for _, n := range order.Sessions {
			stats, err := p.measure(j.loop, n, order.Time)
			if err != nil {
				return raw, fmt.Errorf("measuring %s on %d sessions: %v: %w", j.name, n, err, hsm.ErrUnavailable)
			}
			c.Points = append(c.Points, report.Point{Sessions: n, Stats: stats})
		}
		c.Knee = report.Knee(c.Points)
		raw.Curves = append(raw.Curves, c)
	}
	return raw, nil
}

func (p *prober) loopJobs() ([]job, error) {
	if err := p.makeP256(); err != nil {
		return nil, err
	}
	if err := p.makeSecret(); err != nil {
		return nil, err
	}
	jobs, err := p.jobs()
	mac := loop{key: p.secret, mechanism: pkcs11.CKM_SHA256_HMAC, input: make([]byte, 32), size: 32}
	return append(jobs, job{report.MAC, mac}), err
}
