package softhsmtest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
)

const (
	guesserCount = 64
	// In a few rounds only two guess, so that each comes to the later attempts of
	// its challenge.
	fewGuessers = 2
	guessRounds = 10 // each with one kill -9
	// longestKill bounds the random time from the first guess to kill -9: about what
	// the free tries take.
	longestKill = 25 * time.Millisecond
)

// TestGuessers: 64 at once guess the password of one client while the appliance is
// killed at random moments. However the guesses, the kills and the repeats fall, no
// more of them are checked than the guard has counted, and it counts no more than
// its limit. COUNTERSIGN_SEED repeats the moments.
func TestGuessers(t *testing.T) {
	seed := seedOf(t)
	t.Logf("COUNTERSIGN_SEED=%d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	b := newBench(t)
	g := &guessing{bench: b, phone: b.phoneWith("alice", phone.Means{Verifier: phone.NewVerifier()})}
	g.gate.Store(b.device("gate"))
	var begun, checked int
	for i := range guessRounds {
		g.count = guesserCount
		if i%3 == 2 {
			g.count = fewGuessers
		}
		r := g.round(time.Duration(random.Int64N(int64(longestKill))))
		begun, checked = begun+r.begun, checked+r.checked
	}
	t.Logf("%d guesses begun, %d of them answered as wrong", begun, checked)
	if checked < guessRounds {
		t.Errorf("only %d guesses were answered as wrong: that shows nothing", checked)
	}
}

func seedOf(t *testing.T) uint64 {
	t.Helper()
	if text := os.Getenv("COUNTERSIGN_SEED"); text != "" {
		return must[uint64](t)(strconv.ParseUint(text, 10, 64))
	}
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // never fails, crypto/rand
	return binary.BigEndian.Uint64(raw[:])
}

// guessing is what all guessers share.
type guessing struct {
	*bench
	gate  atomic.Pointer[device.Device] // at the appliance as it is now
	count int                           // of guessers

	mu    sync.Mutex // guards phone.Counter
	phone *phone.Phone
}

// counted is what one round came to.
type counted struct{ begun, checked int }

// mostGuesses is how many a guard with these constants lets begin in a time.
func mostGuesses(d time.Duration) int {
	most := store.FreeTries
	for wait := store.FirstBackOff; wait <= d && most < store.HardLock; wait = min(2*wait, store.MaxBackOff) {
		d -= wait
		most++
	}
	return most
}

// round lets everybody guess from a guard at zero until all are locked out, with a
// kill -9 on the way.
func (g *guessing) round(kill time.Duration) counted {
	g.Helper()
	if r, err := g.Ctl(g.Context(), "client", "unlock", "alice"); err != nil || r.Code != 0 {
		g.Fatalf("unlock: %+v, %v", r, err)
	}
	spent := g.lockedDecisions()
	begun := time.Now()
	var ready, all sync.WaitGroup
	first := make(chan struct{}) // closed: everybody has a challenge
	var told atomic.Int64        // different guesses that were answered as wrong
	ready.Add(g.count)
	for range g.count {
		all.Go(func() {
			s, err := g.challenged()
			ready.Done()
			<-first
			if err == nil {
				err = g.guess(s, &told)
			}
			if err != nil {
				g.Error(err)
			}
		})
	}
	ready.Wait()
	watch := g.watch()
	close(first)
	timer := time.NewTimer(kill)
	defer timer.Stop()
	<-timer.C
	if err := g.Kill(); err != nil {
		g.Fatal(err)
	}
	before := watch()
	g.restart()
	after := g.wrong()
	all.Wait()
	end := g.wrong()
	g.lockedOut()
	out := counted{begun: end, checked: int(told.Load()) + g.lockedDecisions() - spent}
	limit := mostGuesses(time.Since(begun))
	if before > after || after > end {
		g.Errorf("the guard went from %d before the kill to %d after it and %d in the end", before, after, end)
	}
	if out.checked > end || end > limit || end < store.FreeTries {
		g.Errorf("%d guesses answered as wrong, %d counted: want %d to %d counted", out.checked, end, store.FreeTries, limit)
	}
	g.Logf("%d guessers, killed after %v at %d: %d counted, %d answered as wrong", g.count, kill, before, end, out.checked)
	return out
}

// wrong is the guard's count, as an administrator sees it.
func (g *guessing) wrong() int {
	g.Helper()
	client, err := g.Client(g.Context(), "alice")
	if err != nil {
		g.Fatal(err)
	}
	return int(client.Password.Wrong)
}

// watch reads the guard again and again, and holds that it only rises. What it
// gives ends that, and gives the newest count.
func (g *guessing) watch() func() int {
	ctx, stop := context.WithCancel(g.Context())
	newest := make(chan int)
	go func() {
		last := 0
		for ctx.Err() == nil {
			client, err := g.Client(ctx, "alice")
			if err != nil {
				continue // stopped while it asked
			}
			if now := int(client.Password.Wrong); now < last {
				g.Errorf("the guard went from %d to %d", last, now)
			} else {
				last = now
			}
		}
		newest <- last
	}()
	return func() int {
		stop()
		return <-newest
	}
}

// lockedDecisions counts the decisions for a guess that was checked and left no try (11). A phone
// cannot distinguish them from a refusal to check.
func (g *guessing) lockedDecisions() (n int) {
	g.Helper()
	for _, r := range must[[]recordFields](g.T)(g.decisions()) {
		if r.Code == protocol.CodeLocked {
			n++
		}
	}
	return n
}

// recordFields is what this test reads of an audit record.
type recordFields struct {
	Code protocol.Code `json:"code"`
}

func (g *guessing) decisions() (out []recordFields, err error) {
	records, err := g.Records(g.Context())
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if r.Kind != audit.KindDecision {
			continue
		}
		raw, err := json.Marshal(r.Fields)
		if err != nil {
			return nil, err
		}
		var fields recordFields
		if err := json.Unmarshal(raw, &fields); err != nil {
			return nil, fmt.Errorf("record %d: %w", r.Sequence, err)
		}
		out = append(out, fields)
	}
	return out, nil
}

// challenged is a session of level 2 that waits for a password.
func (g *guessing) challenged() (*guessed, error) {
	g.mu.Lock()
	p1 := g.phone.Next(100)
	g.mu.Unlock()
	p1.Level = 2
	s, err := g.phone.Apply(p1.Marshal())
	if err != nil {
		return nil, err
	}
	req := deviceapi.ApplyRequest{M1: s.M1, Order: door, Link: deviceapi.LinkWire, Nonce: device.NewNonce()}
	var res deviceapi.ApplyResponse
	if err := g.insist(func(d *device.Device) (err error) {
		res, err = d.Apply(g.Context(), req)
		return err
	}); err != nil {
		return nil, err
	}
	if err := s.Open(res.M2); err != nil || s.P2.Code != 0 {
		return nil, fmt.Errorf("challenge of code %d: %w", uint8(s.P2.Code), err)
	}
	return &guessed{s, res.Handle}, nil
}

type guessed struct {
	*phone.Session
	handle []byte
}

// guess continues, with new challenges, until it is locked out.
func (g *guessing) guess(s *guessed, told *atomic.Int64) error {
	for {
		for attempt := uint8(0); attempt < store.AttemptsPerChallenge; attempt++ {
			p4, err := g.send(s, s.Guess(attempt))
			switch {
			case err != nil:
				return err
			case p4.Result == protocol.ResultApproved:
				return errors.New("a guess was approved")
			case p4.Reason == protocol.CodePassword:
				told.Add(1)
			case p4.Reason == protocol.CodeLocked:
				return nil
			case p4.Reason != protocol.CodeSerial: // a later serial was spent
				return fmt.Errorf("result %v, reason %d", p4.Result, uint8(p4.Reason))
			}
			if p4.Result != protocol.ResultRetry {
				break
			}
		}
		var err error
		if s, err = g.challenged(); err != nil {
			return err
		}
	}
}

// send sends one countersignature until it is answered.
func (g *guessing) send(s *guessed, a phone.Answer) (p4 message.P4, err error) {
	m3, err := s.Sign(g.Context(), a)
	if err != nil {
		return p4, err
	}
	var res deviceapi.CountersignResponse
	err = g.insist(func(d *device.Device) (err error) {
		res, err = d.Countersign(g.Context(), deviceapi.CountersignRequest{Handle: s.handle, M3: m3})
		return err
	})
	if err != nil {
		return p4, err
	}
	return s.Result(m3, res.M4)
}

// insist repeats a call while the appliance is away or busy. Another refusal is an
// error.
func (g *guessing) insist(call func(*device.Device) error) error {
	return harness.Until(g.Context(), "an answer", func() (bool, error) {
		err := call(g.gate.Load())
		var refused *device.Refusal
		if errors.As(err, &refused) && refused.Status != http.StatusTooManyRequests && refused.Status != http.StatusServiceUnavailable {
			return false, err
		}
		return err == nil, nil
	})
}

func (g *guessing) restart() {
	g.Helper()
	if err := g.Restart(g.Context()); err != nil {
		g.Fatal(err)
	}
	old := g.gate.Swap(g.gate.Load().At(g.URL))
	old.Close()
}

// lockedOut: not even the right password is taken now.
func (g *guessing) lockedOut() {
	g.Helper()
	s := must[*guessed](g.T)(g.challenged())
	p4 := must[message.P4](g.T)(g.send(s, s.Honest(protocol.Approve)))
	wantResult(g.T, p4, message.P4{Reason: protocol.CodeLocked})
}
