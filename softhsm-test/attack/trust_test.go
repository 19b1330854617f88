package attack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

// trust offers key updates that are forged, stale or superseded to a phone.
func trustChain(ctx context.Context, a *Arena) {
	mu := keyUpdate(ctx, a)
	held := a.Till().Trust
	flipUpdate(a, trust.State{Root: held.Root, RootNumber: held.RootNumber, NextRootHash: held.NextRootHash}, mu)
	same(a, offer{"the appliance's own MU", held, mu})
	wrongRoots(ctx, a)
	updates(ctx, a)
}

// keyUpdate asks for one by a kem epoch that is not held.
func keyUpdate(ctx context.Context, a *Arena) []byte {
	s := &Session{Ask: a.AskFor(a.Stranger(), Door, 1)}
	s.M1, s.ES = s.Seal()
	s.Req.M1 = link.Flip(s.M1, 15)
	s.Relay(ctx)
	a.Expect(s.Applied, KeyUpdate)
	a.Check(s.Handle == nil, "an MU came with a handle of %d bytes", len(s.Handle))
	return s.M2
}

// offer is an MU for a phone.
type offer struct {
	what string
	held trust.State
	mu   []byte
}

// same: the phone's trust stays what it was.
func same(a *Arena, o offer) {
	before, err := json.Marshal(o.held)
	a.Code(o.what, err, 0)
	got, _ := o.held.Update(o.mu, Now())
	after, err := json.Marshal(got)
	a.Code(o.what, err, 0)
	a.Check(bytes.Equal(before, after), "%s: trust became %s from %s by %x", o.what, after, before, o.mu)
}

// wrongRoots: who enrols with an activation code believes the root of its hash only.
func wrongRoots(ctx context.Context, a *Arena) {
	m, mallory, next := &Mint{Ctx: ctx}, NewKey(), NewKey()
	document := a.TrustDocument(ctx)
	mine := trust.Document{
		RootKey: mallory.Point(), NextRootHash: HashOf(next), RootCerts: [][]byte{m.RootCert(1, mallory, next)},
		KeyCerts: [][]byte{m.KeyCert(mallory, trust.KeyCert{Epoch: 1, Use: trust.UseKEM, Key: mallory.Point()})},
	}
	swapped, mixed := mine, document
	swapped.RootCerts = document.RootCerts
	mixed.KeyCerts = mine.KeyCerts
	point := mallory.Point()
	genuine, forged := document.RootKey.RootHash(), point.RootHash()
	for what, c := range map[string]struct {
		document trust.Document
		hash     protocol.RootHash
		code     protocol.Code
	}{
		"the appliance's":             {document, genuine, 0},
		"another root":                {mine, genuine, protocol.CodeCertificate},
		"another hash":                {document, forged, protocol.CodeCertificate},
		"another root, genuine chain": {swapped, genuine, protocol.CodeCertificate},
	} {
		_, err := c.document.Resolve(c.hash, Now())
		a.Code("trust document, "+what, err, c.code)
	}
	got, err := mixed.Resolve(genuine, Now())
	a.Check(err == nil && len(got.Keys) == 0, "trust document, foreign key certificates: %d taken, %v", len(got.Keys), err)
}

// updates are for a phone in a domain whose roots are here; it holds epoch 5 of kem and
// decision.
func updates(ctx context.Context, a *Arena) {
	m, mallory := &Mint{Ctx: ctx}, NewKey()
	roots := []Key{NewKey(), NewKey(), NewKey(), NewKey()}
	cert := func(root Key, epoch uint64, change func(*trust.KeyCert)) []byte {
		k := trust.KeyCert{Epoch: epoch, Use: trust.UseKEM, Key: mallory.Point()}
		if change != nil {
			change(&k)
		}
		return m.KeyCert(root, k)
	}
	decision := func(k *trust.KeyCert) { k.Use = trust.UseDecision }
	first := roots[0].Point()
	held := harness.Must(trust.Document{
		RootKey: roots[0].Point(), NextRootHash: HashOf(roots[1]), RootCerts: [][]byte{m.RootCert(1, roots[0], roots[1])},
		KeyCerts: [][]byte{cert(roots[0], 5, nil), cert(roots[0], 5, decision)},
	}.Resolve(first.RootHash(), Now()))
	const day = 24 * 3600
	now, seven, eight := Now(), uint64(7), uint64(8)
	second := m.RootCert(2, roots[1], roots[2])
	for _, c := range []struct {
		what  string
		certs [][]byte
	}{
		{"key certificate by a foreign root", [][]byte{cert(mallory, 6, nil)}},
		{"the epoch it has, another key", [][]byte{cert(roots[0], 5, func(k *trust.KeyCert) { k.Key = NewKey().Point() })}},
		{"an earlier epoch", [][]byte{cert(roots[0], 4, nil)}},
		{"epoch 0", [][]byte{cert(roots[0], 0, nil)}},
		{"an epoch too far ahead", [][]byte{cert(roots[0], 5+64, nil)}},
		{"expired", [][]byte{cert(roots[0], 6, func(k *trust.KeyCert) { k.NotAfter = now - 1 })}},
		{"not yet valid", [][]byte{cert(roots[0], 6, func(k *trust.KeyCert) { k.NotBefore, k.NotAfter = now+2*day, now+3*day })}},
		{"below its own minimum", [][]byte{cert(roots[0], 7, func(k *trust.KeyCert) { k.MinEpoch = &eight })}},
		{"a second root that was not pinned", [][]byte{m.RootCert(2, mallory, roots[2]), cert(mallory, 6, nil)}},
		{"the third root without the second", [][]byte{m.RootCert(3, roots[2], roots[3]), cert(roots[2], 6, nil)}},
		{"the second root under another number", [][]byte{m.RootCert(3, roots[1], roots[2]), cert(roots[1], 6, nil)}},
		{"the second root without a kem key", [][]byte{second, cert(roots[1], 6, decision)}},
		{"the second root, kem key by the first", [][]byte{second, cert(roots[0], 6, nil)}},
		{"the second root after the key", [][]byte{cert(roots[1], 6, nil), second}},
		{"the first root again", [][]byte{m.RootCert(1, roots[0], mallory), cert(mallory, 6, nil)}},
		{"nothing", nil},
	} {
		same(a, offer{"MU: " + c.what, held, trust.KeyUpdate{Certs: c.certs}.Marshal()})
	}
	rotation := trust.KeyUpdate{Certs: [][]byte{second, cert(roots[1], 6, nil)}}.Marshal()
	for bit := range 8 * len(rotation) {
		same(a, offer{fmt.Sprintf("bit %d of an MU with a new root", bit), held, link.Flip(rotation, bit)})
	}
	rotated, err := held.Update(rotation, now)
	a.Check(err == nil && rotated.Root == roots[1].Point() && len(rotated.Keys) == 1, "MU with a new root: %v, %d keys, %v", rotated.Root, len(rotated.Keys), err)
	same(a, offer{"MU: back to the first root", rotated, trust.KeyUpdate{Certs: [][]byte{m.RootCert(1, roots[0], roots[1]), cert(roots[0], 7, nil)}}.Marshal()})
	minimum := trust.KeyUpdate{Certs: [][]byte{cert(roots[0], 7, func(k *trust.KeyCert) { k.Use, k.MinEpoch = trust.UseDecision, &seven })}}.Marshal()
	newer, err := held.Update(minimum, now)
	a.Check(err == nil && len(newer.KeyCerts(trust.UseDecision)) == 1, "a minimum epoch leaves %d decision keys, %v", len(newer.KeyCerts(trust.UseDecision)), err)
	same(a, offer{"MU: the epoch that was ruled out", newer, trust.KeyUpdate{Certs: [][]byte{cert(roots[0], 5, decision)}}.Marshal()})
}

// storeRows alters rows without the appliance. Their MAC shows it.
func storeRows(ctx context.Context, a *Arena) {
	mallory := NewKey()
	point := mallory.Point()
	for _, c := range []struct {
		name   string
		before string // verb of the admin API
		set    string
		key    *Key // that signs instead of the phone's
	}{
		{"key", "", fmt.Sprintf("signing_key = x'%x'", point[:]), &mallory},
		{"honest-key", "", fmt.Sprintf("signing_key = x'%x'", point[:]), nil},
		{"resumed", "suspend", "status = 1", nil},
		{"verifier", "", "verifier = NULL", nil},
		{"role", "", `roles = '["approver","uv"]'`, nil},
		{"version", "", "version = version + 1", nil},
	} {
		phone := a.Equipped(ctx, "row-"+c.name)
		if c.before != "" {
			a.Do(ctx, "client/"+phone.Name+"/"+c.before)
		}
		a.Tamper(ctx, fmt.Sprintf("UPDATE client SET %s WHERE name = '%s'", c.set, phone.Name))
		s := a.AskFor(phone, Door, 1).Must(ctx)
		sign := s.Honest()
		if c.key != nil {
			sign.Key = *c.key
		}
		a.Leaves(ctx, "row altered: "+c.set, Nothing, func() {
			a.Play(ctx, Move{What: "row altered: " + c.set, On: s, Sign: sign, Want: Denied(protocol.CodeRefused)})
		})
	}
}
