package protocol

import (
	"crypto/sha256"
	"testing"
	"time"
)

// testPKI is a root with one key of each use at epoch 1, and the second root.
type testPKI struct {
	root, next keySigner
	keys       map[Use]keySigner
	certs      [][]byte
}

func newPKI(t testing.TB) testPKI {
	t.Helper()
	p := testPKI{root: newKeySigner(t), next: newKeySigner(t), keys: map[Use]keySigner{}}
	for use := UseKEM; use <= UseClientCA; use++ {
		p.keys[use] = newKeySigner(t)
		p.certs = append(p.certs, p.certify(t, use, 1))
	}
	return p
}

// certify makes a KeyCert that begins at vectorTime, an hour later for each epoch
// above 1.
func (p testPKI) certify(t testing.TB, use Use, epoch uint64) []byte {
	t.Helper()
	begin := uint64(vectorTime + 3600*(epoch-1))
	return p.sign(t, KeyCert{Epoch: epoch, Use: use, NotBefore: begin, NotAfter: begin + 90*clockSlack, Key: p.keys[use].public(t)})
}

func (p testPKI) sign(t testing.TB, k KeyCert) []byte {
	t.Helper()
	b, err := SignKeyCert(t.Context(), p.root, k)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p testPKI) rootCert(t testing.TB) []byte {
	t.Helper()
	b, err := SignRootCert(t.Context(), p.root, RootCert{Number: 1, Key: p.root.public(t), NextHash: p.nextHash(t)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p testPKI) nextHash(t testing.TB) [32]byte {
	key := p.next.public(t)
	return sha256.Sum256(key[:])
}

func (p testPKI) document(t testing.TB) TrustDocument {
	t.Helper()
	return TrustDocument{
		RootKey: p.root.public(t), NextRootHash: p.nextHash(t), RootCerts: [][]byte{p.rootCert(t)}, KeyCerts: p.certs,
	}
}

func (p testPKI) trust(t testing.TB) Trust {
	t.Helper()
	trust, err := p.document(t).Resolve(p.root.public(t).RootHash(), vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

var testDevice = DeviceIDOf("spiffe://test.example/device/gate-14")

// decision is one that check takes.
func (p testPKI) decision() Decision {
	return Decision{
		Result: ResultApproved, Statement: [32]byte{1}, Transaction: TransactionID{2}, Level: 2, Factors: 3,
		IssuedAt: vectorTime, Lifetime: 120, Device: testDevice, Service: 1027, Amount: &Amount{Minor: 125442, Currency: "EUR"},
		Pairwise: PairwiseID{3}, Policy: PolicyHash{4}, U: Nonce{5},
	}
}

func (p testPKI) check(t testing.TB) DecisionCheck {
	t.Helper()
	return DecisionCheck{
		Root: p.root.public(t), KeyCerts: p.certs, Now: vectorTime, Device: testDevice, Nonce: Nonce{6},
		Challenges: []Challenge{NewChallenge(Nonce{6}, Nonce{5})}, Services: []Service{1027},
		Amount: &Amount{Minor: 125442, Currency: "EUR"}, Floor: 1, Elapsed: 5 * time.Second,
	}
}
