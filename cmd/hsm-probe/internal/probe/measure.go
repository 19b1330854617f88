package probe

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	ours "countersign/hsm/pkcs11"
)

const (
	// slice is how long a loop in C runs at once; between two it can be stopped.
	slice = 100 * time.Millisecond
	// most sessions that are measured; a knee beyond them is theirs.
	mostSessions = 64
	// beyond the knee, so many times, nothing more is measured.
	beyond = 4
)

// throughput measures signatures and derivations with more and more sessions.
func (p *prober) throughput() error {
	jobs, err := p.jobs()
	if err != nil {
		return err
	}
	each := 600 * time.Millisecond
	if p.order.Quick {
		each = 150 * time.Millisecond
	}
	for _, j := range jobs {
		c := report.Curve{Operation: j.name}
		for n := 1; n <= p.most() && p.hasTime() && n <= beyond*max(c.Knee, 1); n *= 2 {
			stats, err := p.measure(j.loop, n, min(each, time.Until(p.end)))
			if err != nil {
				p.skip(j.name + " by sessions: " + err.Error())
				break
			}
			c.Points = append(c.Points, report.Point{Sessions: n, Stats: stats})
			c.Knee = report.Knee(c.Points)
		}
		if len(c.Points) > 0 {
			p.report.Throughput = append(p.report.Throughput, c)
		}
	}
	return nil
}

// most returns how many sessions a measurement may use.
func (p *prober) most() int {
	if limit := p.limit(); limit > 0 && limit <= mostSessions {
		return max(int(limit)-1, 1)
	}
	return mostSessions
}

// job is a loop by its operation.
type job struct {
	name string
	loop loop
}

func (p *prober) jobs() ([]job, error) {
	if p.p256.private == 0 || p.derive.private == 0 {
		return nil, errNoKey
	}
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return []job{
		{report.Sign, loop{key: p.p256.private, mechanism: pkcs11.CKM_ECDSA, input: make([]byte, 32), size: 64}},
		{report.Derive, loop{key: p.derive.private, mechanism: pkcs11.CKM_ECDH1_DERIVE, input: peer.PublicKey().Bytes(), size: 32}},
	}, nil
}

// measure runs a loop on n sessions in parallel, each with a thread of its own.
func (p *prober) measure(l loop, n int, d time.Duration) (s report.Stats, err error) {
	sessions, err := openSessions(p.Module, n)
	defer func() {
		for _, h := range sessions {
			err = errors.Join(err, at("C_CloseSession", p.CloseSession(h)))
		}
	}()
	if err != nil {
		return s, err
	}
	samples, failed := make([]report.Sample, n), make([]error, n)
	var wg sync.WaitGroup
	before, start := cpuTime(), time.Now()
	for i, h := range sessions {
		own := l
		own.session = h
		wg.Go(func() { samples[i], failed[i] = repeat(p.ctx, p.Module, own, start.Add(d)) })
	}
	wg.Wait()
	took, used := time.Since(start), cpuTime()-before
	s = report.NewStats(samples, took)
	s.CPU = report.Each(used, report.Calls(samples))
	return s, errors.Join(failed...)
}

func openSessions(raw *ours.Module, n int) (list []pkcs11.SessionHandle, err error) {
	for range n {
		h, err := raw.Session()
		if err != nil {
			return list, at("C_OpenSession", err)
		}
		list = append(list, h)
	}
	return list, nil
}

// repeat runs slices of a loop until a time or the end of ctx.
func repeat(ctx context.Context, raw *ours.Module, l loop, end time.Time) (sum report.Sample, err error) {
	for ctx.Err() == nil && time.Now().Before(end) {
		one, _, err := run(raw, l, min(slice, time.Until(end)))
		sum.Calls += one.Calls
		sum.Each = append(sum.Each, one.Each...)
		if err != nil {
			return sum, err
		}
	}
	return sum, ctx.Err()
}

// cpuTime returns the CPU time of all threads of this process.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail for this process
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Measure returns the raw speed of signatures, derivations and MACs with the ordered
// numbers of sessions, with which the speed of the service is compared. The keys are token
// objects, as on an appliance.
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

// costTime is how long one cost is measured.
func (p *prober) costTime() time.Duration {
	if p.order.Quick {
		return 100 * time.Millisecond
	}
	return 500 * time.Millisecond
}

func (p *prober) costs() error {
	if err := p.onToken(); err != nil {
		return err
	}
	if err := p.findCosts(); err != nil {
		return err
	}
	return p.signCosts()
}

// onToken puts the measured keys on the token, as on an appliance: a token object may cost
// a file access or a lock that a session object does not.
func (p *prober) onToken() error {
	if p.p256.private == 0 || p.derive.private == 0 {
		return errNoKey
	}
	for _, k := range []*pair{&p.p256, &p.derive} {
		h, err := p.CopyObject(p.main, k.private, p.draft(true))
		if err != nil {
			p.found("measured_keys", "session objects: "+refused(err))
			return nil //nolint:nilerr // what is there is measured
		}
		p.keep(h)
		k.private = h
	}
	p.found("measured_keys", "token objects")
	return nil
}

// findCosts looks for one key by its id, as the appliance does once for each key, and for
// all objects.
func (p *prober) findCosts() error {
	id, err := p.value(p.p256.private, pkcs11.CKA_ID)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name     string
		template []*pkcs11.Attribute
	}{
		{"find_by_id", []*pkcs11.Attribute{attr(pkcs11.CKA_ID, id), attr(pkcs11.CKA_TOKEN, true)}},
		{"find_all", []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true)}},
	} {
		start, n, seen := time.Now(), 0, 0
		for time.Since(start) < p.costTime()/2 {
			all, err := find(p.Module, p.main, c.template)
			if err != nil {
				return err
			}
			n, seen = n+1, len(all)
		}
		p.cost(c.name, report.Each(time.Since(start), n), fmt.Sprintf("%d of the objects on the token", seen))
	}
	return nil
}

// signCosts measures the parts of a signature, and the cost of asking for its length
// first.
func (p *prober) signCosts() error {
	one := loop{session: p.main, key: p.p256.private, mechanism: pkcs11.CKM_ECDSA, input: make([]byte, 32), size: 64}
	plain, took, err := run(p.Module, one, p.costTime())
	if err != nil {
		return at("C_Sign", err)
	}
	total := took.init + took.call
	share := 100 * float64(took.init) / float64(max(total, 1))
	p.cost("sign_init", report.Each(took.init, plain.Calls), fmt.Sprintf("%.0f %% of a P-256 signature", share))
	p.cost("sign", report.Each(took.call, plain.Calls), "with a buffer of the known length")
	one.query = true
	asked, took, err := run(p.Module, one, p.costTime())
	if err != nil {
		p.found("length_query", refused(err))
		return nil //nolint:nilerr // it is an answer
	}
	p.cost("sign_length_query", report.Each(took.query, asked.Calls), "C_Sign with no buffer, which nothing here calls")
	return nil
}

func (p *prober) cost(name string, us float64, note string) {
	p.report.Costs = append(p.report.Costs, report.Cost{Name: name, US: us, Note: note})
}
