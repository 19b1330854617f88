package attack

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign/protocol"
	"countersign/softhsm-test/attack/twosample"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
)

// significance of all comparisons of a phase together. Each is tested at its share of it
// (Bonferroni).
const significance = 0.01

// phase is one measurement. A refusal is answered late, so that one after the other
// takes minutes; many at once take less, but hide in their own noise what a quiet
// link shows.
type phase struct {
	name  string
	lanes int // authorizations under way at once
	tries int // of each class
	warm  int // of each class before that, not measured
}

// class is one way not to be approved, at level 2. Each lane has phones of its own,
// since the serials of one must rise.
type class struct {
	name   string
	phones []*Phone
	sign   func(*Session) Sign
	want   Verdict

	mu    sync.Mutex // guards what follows
	micro []float64  // round trips of countersign, µs
	sizes map[string]int
}

// timing compares what a relay sees of a client that is unknown, of one that is
// suspended and of a wrong password: the sizes of all messages and the times of the
// countersign round trip, tried in one random order.
func timing(ctx context.Context, a *Arena) {
	for _, p := range []phase{{"busy", 8, 2000, 50}, {"quiet", 1, *quiet, 10}} {
		p.run(ctx, a)
	}
}

func (p phase) run(ctx context.Context, a *Arena) {
	classes := p.refused(ctx, a)
	a.Say("%s: %d tries of each class, %d at once", p.name, p.tries, p.lanes)
	p.measure(ctx, a, classes)
	first := classes[0]
	for _, c := range classes {
		a.Say("%-34s median %7.1f µs, quartiles %7.1f and %7.1f; bytes %s", c.name,
			twosample.Median(c.micro), twosample.Quantile(c.micro, 0.25), twosample.Quantile(c.micro, 0.75), sizesOf(c.sizes))
	}
	for _, c := range classes[1:] {
		for _, message := range measured {
			a.Check(c.sizes[message] == first.sizes[message], "%s: %s of %d bytes, %s: %d", first.name, message, first.sizes[message], c.name, c.sizes[message])
		}
		apart(a, first, c, 2*len(classes[1:]))
	}
	a.Say("%s: told apart would be a shift of %.0f µs", p.name, visible(first.micro, classes[1].micro, 2*len(classes[1:])))
}

// measured are the messages whose sizes are compared.
var measured = []string{"M1", "M2", "M3", "M4", "handle", "body of the answer"}

func sizesOf(sizes map[string]int) (text string) {
	for _, name := range measured {
		text += fmt.Sprintf(" %d", sizes[name])
	}
	return text[1:]
}

// refused makes the classes; the first is what the others are compared with, and the
// second is the first once more: the control of the measurement itself.
func (p phase) refused(ctx context.Context, a *Arena) []*class {
	forger := NewKey()
	forged := func(s *Session) Sign {
		sign := s.Guess(0)
		sign.Key = forger
		return sign
	}
	guess := func(s *Session) Sign { return s.Guess(0) }
	classes := []*class{
		{name: "unknown client", sign: guess, want: Denied(protocol.CodeRefused)},
		{name: "another unknown client (control)", sign: guess, want: Denied(protocol.CodeRefused)},
		{name: "suspended client, bad signature", sign: forged, want: Denied(protocol.CodeRefused)},
		{name: "suspended client, good signature", sign: guess, want: Denied(protocol.CodeSuspended)},
		{name: "wrong password", sign: guess, want: Retry},
	}
	for lane := range p.lanes {
		for i, c := range classes {
			phone := a.Full()
			c.phones = append(c.phones, phone)
			if i < 2 {
				continue
			}
			name := fmt.Sprintf("timing-%s-%d-%d", p.name, i, lane)
			a.Enrol(ctx, name, phone)
			if c.want == Retry {
				continue
			}
			a.Do(ctx, "client/"+name+"/suspend")
		}
	}
	return classes
}

// shuffled is the one random order of all tries, the warm ones first.
func (p phase) shuffled(a *Arena, classes []*class) []*class {
	seed := [32]byte(Random(32))
	a.Say("order by ChaCha8 with seed %x", seed)
	source := mathrand.New(mathrand.NewChaCha8(seed))
	var order []*class
	for _, n := range []int{p.warm, p.tries} {
		from := len(order)
		for range n {
			order = append(order, classes...)
		}
		part := order[from:]
		source.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
	}
	return order
}

// measure tries each class so often, in one random order over all lanes.
func (p phase) measure(ctx context.Context, a *Arena, classes []*class) {
	queue := make(chan try)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(queue)
		for i, c := range p.shuffled(a, classes) {
			select {
			case queue <- try{c, i >= p.warm*len(classes)}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for number := range p.lanes {
		group.Go(func() error {
			l := lane{a, number, a.Till().At(a.URL), 0} // a connection of its own
			defer l.till.Close()
			for t := range queue {
				if err := harness.Try(func() { l.run(ctx, t) }); err != nil {
					return fmt.Errorf("%s: %w", t.class.name, err)
				}
			}
			return nil
		})
	}
	harness.Do(group.Wait())
}

// try is one authorization to be made; counts if it is measured.
type try struct {
	class  *class
	counts bool
}

type lane struct {
	*Arena
	number  int
	till    *device.Device
	guesses int // wrong passwords so far
}

// unlockEvery wrong passwords the guard is set back, so that it never locks.
const unlockEvery = 4

// run makes one authorization, of which only the countersign round trip is timed.
func (l *lane) run(ctx context.Context, t try) {
	phone := t.class.phones[l.number]
	ask := l.AskFor(phone, Door, 2)
	ask.At = l.till
	s := ask.Must(ctx)
	m3 := s.M3(ctx, t.class.sign(s))
	begun := time.Now()
	r := s.Send(ctx, m3)
	took := time.Since(begun)
	l.Expect(r.Named(t.class.name), t.class.want)
	if t.counts {
		t.class.add(took, map[string]int{
			"M1": len(s.M1), "M2": len(s.M2), "M3": len(m3), "M4": len(r.Res.M4), "handle": len(s.Handle), "body of the answer": len(r.Answer),
		})
	}
	if t.class.want != Retry {
		return
	}
	if l.guesses++; l.guesses%unlockEvery != 0 {
		return
	}
	l.Do(ctx, "client/"+phone.Name+"/unlock")
}

// add takes one measured try.
func (c *class) add(took time.Duration, sizes map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.micro, c.sizes = append(c.micro, float64(took.Nanoseconds())/1000), sizes
}

// apart is two checks: neither test distinguishes the two classes.
func apart(a *Arena, x, y *class, comparisons int) {
	share := significance / float64(comparisons)
	difference := twosample.Median(y.micro) - twosample.Median(x.micro)
	z, p := twosample.MannWhitney(y.micro, x.micro)
	d, q := twosample.KolmogorovSmirnov(y.micro, x.micro)
	text := fmt.Sprintf("%s against %s: medians differ by %+.1f µs; Mann-Whitney z %+.2f, p %.2g; Kolmogorov-Smirnov D %.3f, p %.2g; each against %.2g", y.name, x.name, difference, z, p, d, q, share)
	a.Say("%s", text)
	a.Check(p >= share, "told apart by Mann-Whitney: %s", text)
	a.Check(q >= share, "told apart by Kolmogorov-Smirnov: %s", text)
}

// visible is the smallest shift, in whole µs, that Mann-Whitney would detect between two samples of
// one class.
func visible(x, y []float64, comparisons int) float64 {
	centred := make([]float64, len(y))
	gap := twosample.Median(y) - twosample.Median(x)
	for shift := 1.0; ; shift++ {
		for i := range y {
			centred[i] = y[i] - gap + shift
		}
		if _, p := twosample.MannWhitney(centred, x); p < significance/float64(comparisons) || shift > 1e5 {
			return shift
		}
	}
}
