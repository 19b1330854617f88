// Package forge is a trust domain of the attacker's own: whatever a key can sign, it
// signs.
package forge

import (
	"context"
	"crypto/sha256"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/attack/arena"
)

// Mint makes certificates and decisions; the first error is kept in Err, and all
// that follows is nil.
type Mint struct {
	Ctx context.Context
	Err error
}

func (m *Mint) keep(b []byte, err error) []byte {
	if m.Err == nil {
		m.Err = err
	}
	return b
}

// KeyCert by some root. Dates that are zero are of a good certificate.
func (m *Mint) KeyCert(root arena.Key, k trust.KeyCert) []byte {
	if k.NotBefore == 0 {
		k.NotBefore = arena.Now() - 3600
	}
	if k.NotAfter == 0 {
		k.NotAfter = arena.Now() + 3600
	}
	return m.keep(trust.SignKeyCert(m.Ctx, root, k))
}

// RootCert number n, by its own key, that commits to the next.
func (m *Mint) RootCert(n uint64, key, next arena.Key) []byte {
	return m.keep(trust.SignRootCert(m.Ctx, key, trust.RootCert{Number: n, Key: key.Point(), NextHash: HashOf(next)}))
}

// HashOf is the next_root_hash that pins a key.
func HashOf(key arena.Key) [32]byte {
	point := key.Point()
	return sha256.Sum256(point[:])
}

// Decision by a key of an epoch.
func (m *Mint) Decision(key arena.Key, epoch uint64, d receipt.Decision) []byte {
	return m.keep(receipt.Sign(m.Ctx, key, epoch, d))
}

// Batch of decisions by a key of epoch 1.
func (m *Mint) Batch(key arena.Key, decisions ...receipt.Decision) [][]byte {
	batch, err := receipt.SignAll(m.Ctx, key, 1, decisions)
	m.keep(nil, err)
	return batch
}

// ClientCert of a phone, by a client-ca of epoch 1.
func (m *Mint) ClientCert(ca arena.Key, p *arena.Phone) []byte {
	c := trust.ClientCert{Client: p.ID, SigningKey: p.Key.Point(), NotBefore: arena.Now() - 60, NotAfter: arena.Now() + 3600}
	if p.UV != nil {
		point := p.UV.Point()
		c.UVKey = &point
	}
	return m.keep(trust.SignClientCert(m.Ctx, ca, 1, c))
}

// Evidence of a phone that approves a statement with its ordinary key.
func (m *Mint) Evidence(p *arena.Phone, s message.Statement, cert []byte) receipt.Evidence {
	a := message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning}
	sig, err := message.Countersign(m.Ctx, p.Key, s, a)
	m.keep(nil, err)
	return receipt.Evidence{Statement: s, ClientCert: cert, Approval: a, Signature: sig}
}

// Splice puts element i of one CBOR array into another: the payload of one decision
// (2) under the signature of another, the leaf of one receipt (1) beside another.
func (m *Mint) Splice(into, from []byte, i int) []byte {
	var a, b []cbor.RawMessage
	m.keep(nil, cbor.Unmarshal(into, &a))
	m.keep(nil, cbor.Unmarshal(from, &b))
	if m.Err != nil {
		return nil
	}
	a[i] = b[i]
	return m.keep(cbor.Marshal(a))
}
