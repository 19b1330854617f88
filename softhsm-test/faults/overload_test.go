package faults

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
)

// slow is a network HSM: 3 to 4 ms for each round trip, 8 sessions.
func slow(ctx context.Context, s *stage) {
	const sessions, shoppers, span = 4, 16, 3 * time.Second
	s.enrol(ctx, shoppers)
	v := s.service(sessions)
	harness.Do(v.start(ctx, s))
	for _, rules := range [][]string{nil, {"@op latency 3000", "@op jitter 1000"}} {
		harness.Do(s.Set(rules...))
		m := s.closedLoop(ctx, span)
		s.Check(m.failed == 0 && m.rate > 0, "%d sessions, %d phones, %v: %.0f approvals/s, requests p50 %v, p99 %v, failed %d",
			2*sessions, shoppers, rules, m.rate, m.p50.Round(100*time.Microsecond), m.p99.Round(100*time.Microsecond), m.failed)
	}
	s.Check(len(s.journal.bad) == 0, "bad signatures released: %d%s", len(s.journal.bad), first(s.journal.bad))
}

// measure is what a span of load came to.
type measure struct {
	rate     float64 // approvals per second
	p50, p99 time.Duration
	failed   int
}

// closedLoop lets all customers shop for a time.
func (s *stage) closedLoop(ctx context.Context, span time.Duration) measure {
	stop := s.crowd(ctx)
	from := time.Now()
	err := during(ctx, span)
	to := time.Now()
	stop()
	all := s.journal.since(from, to)
	m := measure{rate: s.journal.rate(from, to), p50: quantile(all, 0.5), p99: quantile(all, 0.99), failed: len(filter(all, exchange.failed))}
	harness.Do(err)
	return m
}

// Of overload. The token is the limit: 4 sessions, 25 ms for each operation inside it.
const (
	few, many   = 16, 400 // phones that find the most there is, and that ask for more
	times       = 3
	quick       = 20 * time.Millisecond
	alone       = 0.8             // of the most, where the generator has cores of its own
	shared      = 0.6             // where it has not
	ownCores    = 0.5             // CPU seconds per second of a load generator that does not disturb the appliance
	filling     = 2 * time.Second // until queues are as long as they get
	overloading = 6 * time.Second
)

// overload sends three times the load that the token can take, whether or not answers come back.
func overload(ctx context.Context, s *stage) {
	s.enrol(ctx, many)
	v := s.service(2)
	harness.Do(v.start(ctx, s))
	everybody := s.customers
	s.warm(ctx)
	harness.Do(s.Set("@crypto latency 25000"))
	s.customers = everybody[:few]
	most := s.closedLoop(ctx, 2*time.Second)
	s.customers = everybody
	s.Check(most.rate > 0 && most.failed == 0, "the most: %.0f approvals/s, requests p50 %v, failed %d", most.rate, most.p50.Round(time.Millisecond), most.failed)
	s.flood(ctx, most.rate)
	s.settled(ctx)
	s.Check(len(s.journal.bad) == 0, "bad signatures released: %d%s", len(s.journal.bad), first(s.journal.bad))
}

// warm lets every phone authorize once: the first time the appliance asks the token
// for more of it than later, for what it then remembers.
func (s *stage) warm(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(few)
	for _, c := range s.customers {
		group.Go(func() error {
			if !c.step(ctx) {
				return fmt.Errorf("a phone was turned away before there was a load")
			}
			return nil
		})
	}
	harness.Do(group.Wait())
}

// flood measures goodput and refusals.
func (s *stage) flood(ctx context.Context, most float64) {
	cpu := cpuTime()
	begun := time.Now()
	asked, noPhone := s.openLoop(ctx, times*most)
	share := (cpuTime() - cpu).Seconds() / time.Since(begun).Seconds()
	from, to := begun.Add(filling), begun.Add(overloading)
	limit := alone
	if share > ownCores {
		limit = shared
	}
	good := s.journal.rate(from, to)
	s.Check(good >= limit*most, "asked for %.0f/s: %.0f approvals/s, %.0f %% of the most (at least %.0f %%); generator's CPU %.2f cores",
		times*most, good, 100*good/most, 100*limit, share)
	s.Say("arrivals %d, of them without a phone that was free %d", asked, noPhone)
	all := s.journal.since(begun, to)
	refused := filter(all, exchange.failed)
	strange := filter(refused, func(e exchange) bool { return !e.foreseen() })
	s.Check(len(strange) == 0, "requests %s, of them not foreseen %d%s", codes(all), len(strange), example(strange))
	late := filter(refused, func(e exchange) bool { return e.code != protocol.CodeBusy && e.took > quick })
	s.Check(len(late)*20 <= len(refused), "refused %d, p50 %v, p95 %v, of them after more than %v and not with code 16: %d",
		len(refused), quantile(refused, 0.5).Round(time.Millisecond), quantile(refused, 0.95).Round(time.Millisecond), quick, len(late))
}

// openLoop lets a free phone ask at each tick, whether or not earlier requests were answered.
func (s *stage) openLoop(ctx context.Context, perSecond float64) (asked, noPhone int) {
	if perSecond <= 0 {
		harness.Fail("a token that does nothing")
		return 0, 0
	}
	free := make(chan *customer, len(s.customers))
	for _, c := range s.customers {
		free <- c
	}
	var all sync.WaitGroup
	tick := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
	defer tick.Stop()
	for end := time.Now().Add(overloading); time.Now().Before(end) && ctx.Err() == nil; asked++ {
		<-tick.C
		select {
		case c := <-free:
			all.Go(func() {
				c.step(ctx)
				free <- c
			})
		default:
			noPhone++
		}
	}
	all.Wait()
	harness.Do(ctx.Err())
	return asked, noPhone
}

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail for this process
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
