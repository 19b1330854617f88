package pool

import (
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/wire"
)

const (
	// canaryInterval is the time between two canaries of a worker, up to a tenth more.
	canaryInterval = 500 * time.Millisecond
	// canaryRounds is the number of intervals in which each key is used once: 3 s.
	canaryRounds = 6
	// maxWrong is the number of wrong answers in a row that ends a worker.
	maxWrong = 3
	// canaryText begins what canaries sign and authenticate, so that no protocol here
	// gives it a meaning.
	canaryText = "countersign canary v1"
)

// prove tests a new worker before it gets calls. The first worker of a pool uses each key,
// so that a pair whose halves do not match is known at the start. A replacement uses one
// key, and its canaries the others soon after: otherwise a token that fails now and then
// would keep all replacements out. Keys that are gone from the token are logged.
func (p *Pool) prove(ctx context.Context, c *conn) error {
	keys, err := p.list(ctx, c)
	if err != nil {
		return err
	}
	first := p.keys.empty()
	if len(keys) == 0 && len(p.keys.testable()) > 0 { // not logged in, or another token
		return fmt.Errorf("the token has lost its keys: %w", hsm.ErrUnavailable)
	}
	for _, k := range p.keys.replace(keys) {
		p.cfg.Logger.Error("key is gone from the token", "key", k.Label, "id", k.ID.String())
	}
	testable := p.keys.testable()
	if !first && len(testable) > 0 {
		n := mathrand.N(len(testable))
		testable = testable[n : n+1]
	}
	for _, k := range testable {
		if err := p.proveKey(ctx, c, k); err != nil {
			return err
		}
	}
	return nil
}

// proveKey uses a key until the answer is right, or wrong three times.
func (p *Pool) proveKey(ctx context.Context, c *conn, k cachedKey) error {
	for {
		err := p.testKey(ctx, canary{c.canaries, p.cfg.Timeout, p.cfg.Timeout + grace}, k)
		if err == nil {
			c.answeredRight()
			return nil
		}
		if !errors.Is(err, hsm.ErrGarbled) || p.wrongAnswer(c, err) {
			return err
		}
	}
}

// list asks this worker for the token's keys. Before it does, it sends the public keys that callers
// know.
func (p *Pool) list(ctx context.Context, c *conn) ([]hsm.Key, error) {
	l := canary{c.canaries, slow * p.cfg.Timeout, slow*p.cfg.Timeout + grace}
	for some := range slices.Chunk(p.known.list(), wire.MaxKnown) {
		if _, err := l.call(ctx, wire.Know(some)); err != nil {
			return nil, err
		}
	}
	answer, err := l.call(ctx, wire.Keys())
	if err != nil {
		return nil, err
	}
	return wire.ParseKeys(answer)
}

// runCanaries sends canaries through a worker until it is lost, so that a worker that
// hangs, lost its token or answers wrongly is noticed before a request meets it.
func (p *Pool) runCanaries(c *conn) {
	next := 0
	for {
		timer := time.NewTimer(canaryInterval + mathrand.N(canaryInterval/10))
		select {
		case <-c.done:
			timer.Stop()
			return
		case <-timer.C:
		}
		keys := p.keys.testable()
		for range (len(keys) + canaryRounds - 1) / canaryRounds {
			next = (next + 1) % len(keys)
			p.sendCanary(c, keys[next])
		}
	}
}

// sendCanary tests one key and acts on the outcome.
func (p *Pool) sendCanary(c *conn, k cachedKey) {
	err := p.testKey(context.Background(), canary{c.canaries, p.silenceLimit(), p.cfg.Timeout + grace}, k)
	if _, still := p.keys.find(k.ID); c.lost() || !still {
		return
	}
	switch {
	case err == nil:
		c.answeredRight()
		c.setSilent(false) // other calls may be answered too
		p.updateHealth(nil)
		return
	case errors.Is(err, hsm.ErrGarbled):
		p.wrongAnswer(c, err)
	case errors.Is(err, errLate):
		c.setSilent(true)
		p.updateHealth(nil)
	case errors.Is(err, hsm.ErrKey): // the key was there when the worker started
		c.fail(err)
	case c.countFailed() >= maxWrong: // alive, and of no use
		c.fail(err)
	}
	p.metrics.canaries.Inc()
	p.cfg.Logger.Warn("canary failed", "pid", c.pid(), "key", k.Label, "error", err)
}

// wrongAnswer counts a wrong answer of a worker. The third in a row ends the worker, which
// it reports.
func (p *Pool) wrongAnswer(c *conn, err error) (ended bool) {
	p.metrics.garbled.Inc()
	if c.countWrong() < maxWrong {
		return false
	}
	p.metrics.quarantines.Inc()
	p.cfg.Logger.Error("worker quarantined: it gave wrong answers", "pid", c.pid(), "in_a_row", maxWrong, "error", err)
	c.fail(err)
	return true
}

// canary is a worker's second connection, where a test waits for no other call.
type canary struct {
	*conn
	limit, overdue time.Duration // after which to give up, and to kill the worker
}

func (l canary) call(ctx context.Context, q wire.Request) ([]byte, error) {
	now := time.Now()
	q.Deadline = wire.Now() + int64(l.limit)
	answer, err := l.do(ctx, q, limits{hedge: now.Add(l.limit), deadline: now.Add(l.limit), overdue: now.Add(l.overdue)})
	if err != nil {
		return nil, fmt.Errorf("canary: %s: %w", q.Op, err)
	}
	return answer.Payload, nil
}

// testKey uses a key and verifies the answer. It returns [hsm.ErrGarbled] if that is wrong.
func (p *Pool) testKey(ctx context.Context, l canary, k cachedKey) (err error) {
	switch {
	case k.Usage == hsm.DeriveP256:
		err = p.testDecap(ctx, l, k)
	case k.Usage == hsm.MACKey:
		err = p.testMAC(ctx, l, k)
	default:
		err = l.testSign(ctx, k)
	}
	if errors.Is(err, hsm.ErrUnsupported) {
		return nil // the key came from another module
	}
	return err
}

func (l canary) testSign(ctx context.Context, k cachedKey) error {
	alg := k.Usage.Proof()
	var salt [16]byte
	_, _ = rand.Read(salt[:]) // never fails, see crypto/rand.Read
	input := append([]byte(canaryText), salt[:]...)
	if hash := alg.Hash(); hash != 0 {
		h := hash.New()
		h.Write(input)
		input = h.Sum(nil)
	}
	sig, err := l.call(ctx, wire.Sign(k.ID, alg, input))
	if err != nil {
		return err
	}
	return k.verify(alg, input, sig)
}

// testDecap compares with the other side of the agreement, computed here.
func (p *Pool) testDecap(ctx context.Context, l canary, k cachedKey) error {
	kems := p.KEMs()
	if len(kems) == 0 {
		return nil // the key came from another module
	}
	public, err := k.point()
	if err != nil {
		return err
	}
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	z, err := ephemeral.ECDH(public)
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	enc := ephemeral.PublicKey()
	got, err := l.call(ctx, wire.Decap(k.ID, kems[0], enc))
	if err != nil {
		return err
	}
	if !hmac.Equal(got, kems[0].Secret(z, append(enc.Bytes(), public.Bytes()...))) {
		return fmt.Errorf("key %s derived another secret: %w", k.Label, hsm.ErrGarbled)
	}
	return nil
}

// testMAC compares with the key's earlier MACs, of any worker.
func (p *Pool) testMAC(ctx context.Context, l canary, k cachedKey) error {
	q := wire.MAC(k.ID, []byte(canaryText))
	first, err := l.call(ctx, q)
	if err != nil {
		return err
	}
	second, err := l.call(ctx, q)
	if err != nil {
		return err
	}
	if len(first) != check.SecretLen || !p.keys.sameMAC(k.ID, first, second) {
		return fmt.Errorf("key %s gave another MAC: %w", k.Label, hsm.ErrGarbled)
	}
	return nil
}
