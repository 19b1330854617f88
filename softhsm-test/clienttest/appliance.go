// Package clienttest is an appliance and a device for tests of the client, made of
// package protocol alone: the cryptography, TLS and links are real, the policy is
// what the test says. It asserts what a client owes it.
package clienttest

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// Behaviour is what the appliance and the device do. The zero value approves at
// level 1.
type Behaviour struct {
	P2     message.P2    // fields to put in place of the usual ones; Code makes it the error form
	Deny   protocol.Code // not 0: result 0 with this reason
	Result protocol.Result
	Decide bool // give a decision to who asks for one
	// DenyRetry goes with Deny, in seconds.
	DenyRetry *uint64
	// FirstService is what a second approver is shown in place of the service that
	// waits; 0: that one.
	FirstService protocol.Service

	// Tamper sees each message before it goes on and gives what goes on in its place;
	// nil cuts the link. toClient tells the direction. One call at a time.
	Tamper func(toClient bool, msg []byte) []byte
	// Forget makes the device lose its challenge before the next message.
	Forget bool
	// OtherCA has the TLS certificate signed by a key that the root does not certify.
	OtherCA bool
	// OtherRoot has the enrolment answered with another root key.
	OtherRoot bool
	// Conflict answers that many enrolments with 409.
	Conflict int
}

// Appliance is an appliance with one device.
type Appliance struct {
	t testing.TB

	root, next, decision, ca, clientCA, rogue Signer
	rootCert                                  []byte

	tampering sync.Mutex // held while Tamper runs, outside of mu

	mu       sync.Mutex // guards all below
	do       Behaviour
	kemEpoch uint64
	kem      *ecdh.PrivateKey
	enrol    *ecdh.PrivateKey
	certs    map[trust.Use][]byte
	codes    map[string]enrolled
	clients  map[protocol.ClientID]client
	current  *challenge
	waiting  *challenge // for a second approver
	device   protocol.DeviceID
	slots    map[slot]*seen
	highest  map[protocol.ClientID]uint32

	decisionEpoch uint64
}

// Signer is a P-256 key in software.
type Signer struct{ key *ecdsa.PrivateKey }

// NewSigner makes a key.
func NewSigner(t testing.TB) Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Signer{key}
}

// SignDigest gives r‖s.
func (s Signer) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return sig, nil
}

// Public is the key's point.
func (s Signer) Public() protocol.PublicKey {
	p, err := protocol.CompressKey(&s.key.PublicKey)
	if err != nil {
		panic(err) // the curve is P-256
	}
	return p
}

// New makes the keys of an appliance.
func New(t testing.TB) *Appliance {
	t.Helper()
	a := &Appliance{
		t: t, root: NewSigner(t), next: NewSigner(t), decision: NewSigner(t), ca: NewSigner(t), clientCA: NewSigner(t),
		rogue: NewSigner(t), certs: map[trust.Use][]byte{}, codes: map[string]enrolled{},
		clients: map[protocol.ClientID]client{}, device: protocol.DeviceIDOf("spiffe://test/device/door-1"),
		slots: map[slot]*seen{}, highest: map[protocol.ClientID]uint32{}, decisionEpoch: 1,
	}
	next := a.next.Public()
	cert, err := trust.SignRootCert(t.Context(), a.root, trust.RootCert{
		Number: 1, Key: a.root.Public(), NextHash: sha256.Sum256(next[:]),
	})
	if err != nil {
		t.Fatal(err)
	}
	a.rootCert = cert
	a.certify(trust.UseDecision, 1, a.decision.Public())
	a.certify(trust.UseCA, 1, a.ca.Public())
	a.certify(trust.UseClientCA, 1, a.clientCA.Public())
	a.enrol = a.agreement(trust.UseEnrol, 1)
	a.RotateKEM()
	return a
}

// agreement makes a certified key for ECDH.
func (a *Appliance) agreement(use trust.Use, epoch uint64) *ecdh.PrivateKey {
	a.t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	point, err := protocol.CompressPoint(key.PublicKey().Bytes())
	if err != nil {
		a.t.Fatal(err)
	}
	a.certify(use, epoch, point)
	return key
}

func (a *Appliance) certify(use trust.Use, epoch uint64, key protocol.PublicKey) {
	a.t.Helper()
	now := time.Now()
	cert, err := trust.SignKeyCert(context.Background(), a.root, trust.KeyCert{
		Epoch: epoch, Use: use, Key: key,
		NotBefore: uint64(now.Add(-time.Hour).Unix()), NotAfter: uint64(now.Add(24 * time.Hour).Unix()),
	})
	if err != nil {
		a.t.Fatal(err)
	}
	a.certs[use] = cert
}

// RotateKEM makes the next kem epoch the only one held.
func (a *Appliance) RotateKEM() {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kemEpoch++
	a.kem = a.agreement(trust.UseKEM, a.kemEpoch)
}

// Do sets the behaviour from now on.
func (a *Appliance) Do(b Behaviour) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.do = b
}

// Root is the hash of the root key that an activation code names.
func (a *Appliance) Root() protocol.RootHash { return a.root.Public().RootHash() }

// Device is the device's handle.
func (a *Appliance) Device() protocol.DeviceHandle { return a.device.Handle() }

// Acts gives how many operations were approved under each counter, and carried out,
// of all clients together.
func (a *Appliance) Acts() map[uint32]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	acts := map[uint32]int{}
	for in, s := range a.slots {
		if s.acts != 0 {
			acts[in.counter] += s.acts
		}
	}
	return acts
}

// Highest is the highest counter of an M1 that arrived.
func (a *Appliance) Highest() uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	var highest uint32
	for _, counter := range a.highest {
		highest = max(highest, counter)
	}
	return highest
}
