package pool

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/wire"
)

// canaryText begins what canaries sign and authenticate, so that it is nothing
// that any protocol here gives a meaning to.
const canaryText = "countersign canary v1"

// lane is a worker's lane with how long a trial on it may take.
type lane struct {
	*link
	limit, overdue time.Duration // to give up, to kill the worker
}

// call is one call on the lane, which waits for no other.
func (l lane) call(ctx context.Context, q wire.Request) ([]byte, error) {
	now := time.Now()
	q.Deadline = wire.Now() + int64(l.limit)
	answer, err := l.do(ctx, q, patience{hedge: now.Add(l.limit), deadline: now.Add(l.limit), overdue: now.Add(l.overdue)})
	if err != nil {
		return nil, fmt.Errorf("canary: %s: %w", q.Op, err)
	}
	return answer.Payload, nil
}

// try lets a worker use a key and verifies what comes of it. An answer that is
// wrong is [hsm.ErrGarbled].
func (p *Pool) try(ctx context.Context, l lane, k pinned) (err error) {
	switch k.Usage {
	case hsm.DeriveP256:
		err = l.tryDerive(ctx, k)
	case hsm.MACKey:
		err = p.tryMAC(ctx, l, k)
	default:
		err = l.trySign(ctx, k)
	}
	if errors.Is(err, hsm.ErrUnsupported) {
		return nil // a key of somebody else's module
	}
	return err
}

func (l lane) trySign(ctx context.Context, k pinned) error {
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

// tryDerive compares with the other half of the agreement, made here.
func (l lane) tryDerive(ctx context.Context, k pinned) error {
	public, err := k.point()
	if err != nil {
		return err
	}
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	want, err := ephemeral.ECDH(public)
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	got, err := l.call(ctx, wire.Derive(k.ID, ephemeral.PublicKey()))
	if err != nil {
		return err
	}
	if !hmac.Equal(got, want) {
		return fmt.Errorf("key %s derived another secret: %w", k.Label, hsm.ErrGarbled)
	}
	return nil
}

func (k pinned) point() (*ecdh.PublicKey, error) {
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		return public.ECDH()
	case *ecdh.PublicKey:
		return public, nil
	}
	return nil, fmt.Errorf("key %s is a %T: %w", k.Label, k.public, hsm.ErrKey)
}

// tryMAC holds a key to what it gave before, by whatever worker.
func (p *Pool) tryMAC(ctx context.Context, l lane, k pinned) error {
	q := wire.MAC(k.ID, []byte(canaryText))
	first, err := l.call(ctx, q)
	if err != nil {
		return err
	}
	second, err := l.call(ctx, q)
	if err != nil {
		return err
	}
	if len(first) != check.SecretLen || !p.book.agreed(k.ID, first, second) {
		return fmt.Errorf("key %s gave another MAC: %w", k.Label, hsm.ErrGarbled)
	}
	return nil
}
