package protocol_test

import (
	"crypto/sha256"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

const (
	clockSlack = 24 * 3600 // seconds
	kemGrace   = 30 * clockSlack
)

// testPKI is a root with one key of each use at epoch 1, and the second root.
type testPKI struct {
	root, next keySigner
	keys       map[trust.Use]keySigner
	certs      [][]byte
}

func newPKI(t testing.TB) testPKI {
	t.Helper()
	p := testPKI{root: newKeySigner(t), next: newKeySigner(t), keys: map[trust.Use]keySigner{}}
	for use := trust.UseKEM; use <= trust.UseClientCA; use++ {
		p.keys[use] = newKeySigner(t)
		p.certs = append(p.certs, p.certify(t, use, 1))
	}
	return p
}

// certify returns a KeyCert that begins at vectorTime, one hour later for each epoch above 1.
func (p testPKI) certify(t testing.TB, use trust.Use, epoch uint64) []byte {
	t.Helper()
	begin := uint64(vectorTime + 3600*(epoch-1))
	return p.sign(t, trust.KeyCert{Epoch: epoch, Use: use, NotBefore: begin, NotAfter: begin + 90*clockSlack, Key: p.keys[use].public(t)})
}

func (p testPKI) sign(t testing.TB, k trust.KeyCert) []byte {
	t.Helper()
	b, err := trust.SignKeyCert(t.Context(), p.root, k)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p testPKI) rootCert(t testing.TB) []byte {
	t.Helper()
	b, err := trust.SignRootCert(t.Context(), p.root, trust.RootCert{Number: 1, Key: p.root.public(t), NextHash: p.nextHash(t)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p testPKI) nextHash(t testing.TB) [32]byte {
	key := p.next.public(t)
	return sha256.Sum256(key[:])
}

func (p testPKI) document(t testing.TB) trust.Document {
	t.Helper()
	return trust.Document{
		RootKey: p.root.public(t), NextRootHash: p.nextHash(t), RootCerts: [][]byte{p.rootCert(t)}, KeyCerts: p.certs,
	}
}

func (p testPKI) trust(t testing.TB) trust.State {
	t.Helper()
	pinned, err := p.document(t).Resolve(p.root.public(t).RootHash(), vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	return pinned
}

var testDevice = protocol.DeviceIDOf("spiffe://test.example/device/gate-14")

// decision returns one that check accepts.
func (p testPKI) decision() receipt.Decision {
	return receipt.Decision{
		Result: protocol.ResultApproved, Statement: [32]byte{1}, Transaction: protocol.TransactionID{2}, Level: 2, Factors: 3,
		IssuedAt: vectorTime, Lifetime: 120, Device: testDevice, Service: 1027, Amount: &protocol.Amount{Minor: 125442, Currency: "EUR"},
		Pairwise: protocol.PairwiseID{3}, Policy: protocol.PolicyHash{4}, U: protocol.Nonce{5},
	}
}

func (p testPKI) check(t testing.TB) receipt.Check {
	t.Helper()
	return receipt.Check{
		Root: p.root.public(t), KeyCerts: p.certs, Now: vectorTime, Device: testDevice, Nonce: protocol.Nonce{6},
		Challenges: []protocol.Challenge{protocol.NewChallenge(protocol.Nonce{6}, protocol.Nonce{5})}, Services: []protocol.Service{1027},
		Amount: &protocol.Amount{Minor: 125442, Currency: "EUR"}, Floor: 1, Elapsed: 5 * time.Second,
	}
}
