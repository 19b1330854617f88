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

	ours "countersign/hsm/pkcs11"
	"countersign/hsm/sheet"
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
		c := sheet.Curve{Operation: j.name}
		for n := 1; n <= p.most() && p.hasTime() && n <= beyond*max(c.Knee, 1); n *= 2 {
			stats, err := p.measure(j.loop, n, min(each, time.Until(p.end)))
			if err != nil {
				p.skip(j.name + " by sessions: " + err.Error())
				break
			}
			c.Points = append(c.Points, sheet.Point{Sessions: n, Stats: stats})
			c.Knee = sheet.Knee(c.Points)
		}
		if len(c.Points) > 0 {
			p.sheet.Throughput = append(p.sheet.Throughput, c)
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
	loop ours.Loop
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
		{sheet.Sign, ours.Loop{Key: p.p256.private, Mechanism: pkcs11.CKM_ECDSA, Input: make([]byte, 32), Size: 64}},
		{sheet.Derive, ours.Loop{Key: p.derive.private, Mechanism: pkcs11.CKM_ECDH1_DERIVE, Input: peer.PublicKey().Bytes(), Size: 32}},
	}, nil
}

// measure runs a loop on n sessions side by side, each with a thread of its own.
func (p *prober) measure(l ours.Loop, n int, d time.Duration) (s sheet.Stats, err error) {
	sessions, err := openSessions(p.Raw, n)
	defer func() {
		for _, h := range sessions {
			err = errors.Join(err, at("C_CloseSession", p.CloseSession(h)))
		}
	}()
	if err != nil {
		return s, err
	}
	samples, failed := make([]sheet.Sample, n), make([]error, n)
	var wg sync.WaitGroup
	before, start := cpuTime(), time.Now()
	for i, h := range sessions {
		own := l
		own.Session = h
		wg.Go(func() { samples[i], failed[i] = repeat(p.ctx, p.Raw, own, start.Add(d)) })
	}
	wg.Wait()
	took, used := time.Since(start), cpuTime()-before
	s = sheet.NewStats(samples, took)
	s.CPU = sheet.Each(used, sheet.Calls(samples))
	return s, errors.Join(failed...)
}

func openSessions(raw *ours.Raw, n int) (list []pkcs11.SessionHandle, err error) {
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
func repeat(ctx context.Context, raw *ours.Raw, l ours.Loop, end time.Time) (sum sheet.Sample, err error) {
	for ctx.Err() == nil && time.Now().Before(end) {
		one, _, err := raw.Run(l, min(slice, time.Until(end)))
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
