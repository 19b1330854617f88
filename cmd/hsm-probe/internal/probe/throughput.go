package probe

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"countersign/cmd/hsm-probe/internal/report"
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

// most is how many sessions the token has for a measurement.
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

// measure runs a loop on n sessions side by side, each with a thread of its own.
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

// cpuTime is what all threads of this process used.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail for this process
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
