// Package clienttest provides an appliance and a device for tests of the client, made from package
// protocol. Cryptography, TLS and links are real; the test sets the policy. It asserts the client's
// obligations.
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

// Behaviour configures the appliance and the device. The zero value approves at level 1.
type Behaviour struct {
	P2     message.P2    // members to replace; Code selects the error form
	Deny   protocol.Code // not 0: result 0 with this reason
	Result protocol.Result
	Decide bool // add a decision if the client requests one
	// DenyRetry goes with Deny, in seconds.
	DenyRetry *uint64
	// Performed is what the device has reported about every act; nil: nothing.
	Performed *bool
	// FirstService replaces the service that a second approver sees; 0: the real one.
	FirstService protocol.Service

	// Tamper sees each message and returns its replacement; nil cuts the link. toClient is the
	// direction. Calls do not overlap.
	Tamper func(toClient bool, msg []byte) []byte
	// Forget makes the device lose its challenge before the next message.
	Forget bool
	// OtherCA signs the TLS certificate with a key that the root does not certify.
	OtherCA bool
	// OtherRoot answers the enrolment with another root key.
	OtherRoot bool
	// Conflict is the number of enrolments to answer with 409.
	Conflict int
}

// Appliance is an appliance with one device.
type Appliance struct {
	t testing.TB

	root, next, decision, ca, clientCA, rogue Signer
	rootCerts                                 [][]byte

	tampering sync.Mutex // held while Tamper runs, acquired before mu

	mu       sync.Mutex // guards the fields below
	do       Behaviour
	kemEpoch uint64
	kem      *ecdh.PrivateKey
	suite    uint8 // of kem
	enrol    *ecdh.PrivateKey
	certs    map[trust.Use][]byte
	later    [][]byte // KeyCerts of epochs that are not in use
	codes    map[string]enrolled
	clients  map[protocol.ClientID]client
	current  *challenge
	waiting  *challenge // for a second approver
	device   protocol.DeviceID
	slots    map[slot]*seen
	highest  map[protocol.ClientID]uint32
	open     int        // links
	closed   *sync.Cond // on mu: open has changed

	decisionEpoch uint64
	from          time.Time // not-before of the KeyCerts
}

// Signer is a P-256 key in software.
type Signer struct{ key *ecdsa.PrivateKey }

// NewSigner returns a new key.
func NewSigner(t testing.TB) Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Signer{key}
}

// SignDigest returns r‖s.
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

// Public returns the public key.
func (s Signer) Public() protocol.PublicKey {
	p, err := protocol.CompressKey(&s.key.PublicKey)
	if err != nil {
		panic(err) // the curve is P-256
	}
	return p
}

// New returns an appliance with new keys.
func New(t testing.TB) *Appliance {
	t.Helper()
	return NewDated(t, time.Now().Add(-time.Hour))
}

// NewDated returns an appliance with new keys, whose KeyCerts are valid for 25 hours from a time.
func NewDated(t testing.TB, from time.Time) *Appliance {
	t.Helper()
	a := &Appliance{
		t: t, root: NewSigner(t), next: NewSigner(t), decision: NewSigner(t), ca: NewSigner(t), clientCA: NewSigner(t),
		rogue: NewSigner(t), certs: map[trust.Use][]byte{}, codes: map[string]enrolled{},
		clients: map[protocol.ClientID]client{}, device: protocol.DeviceIDOf("spiffe://test/device/door-1"),
		slots: map[slot]*seen{}, highest: map[protocol.ClientID]uint32{}, decisionEpoch: 1, from: from, suite: message.Suite1,
	}
	a.closed = sync.NewCond(&a.mu)
	a.introduce(trust.ReasonRoutine)
	a.certify(trust.UseDecision, 1, a.decision.Public())
	a.certify(trust.UseCA, 1, a.ca.Public())
	a.certify(trust.UseClientCA, 1, a.clientCA.Public())
	a.enrol = a.agreement(trust.UseEnrol, 1)
	a.RotateKEM()
	return a
}

// agreement returns a certified key for ECDH.
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
	k := trust.KeyCert{Epoch: epoch, Use: use, Key: key}
	if use == trust.UseKEM && a.suite != message.Suite1 {
		k.Suite = a.suite
	}
	a.certs[use] = a.sign(k, a.from, 25*time.Hour)
}

func (a *Appliance) sign(k trust.KeyCert, from time.Time, lasts time.Duration) []byte {
	a.t.Helper()
	k.NotBefore, k.NotAfter = uint64(from.Unix()), uint64(from.Add(lasts).Unix())
	cert, err := trust.SignKeyCert(context.Background(), a.root, k)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// Prepare gives out a KeyCert of an epoch that begins later.
func (a *Appliance) Prepare(use trust.Use, epoch uint64, from time.Time, lasts time.Duration) {
	a.t.Helper()
	cert := a.sign(trust.KeyCert{Epoch: epoch, Use: use, Key: NewSigner(a.t).Public()}, from, lasts)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.later = append(a.later, cert)
}

// introduce signs the RootCert of the root.
func (a *Appliance) introduce(reason uint64) {
	a.t.Helper()
	next := a.next.Public()
	cert, err := trust.SignRootCert(context.Background(), a.root, trust.RootCert{
		Number: uint64(len(a.rootCerts) + 1), Key: a.root.Public(), NextHash: sha256.Sum256(next[:]), Reason: reason,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	a.rootCerts = append(a.rootCerts, cert)
}

// RotateKEM replaces the kem key by the next epoch.
func (a *Appliance) RotateKEM() {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rotateKEMLocked()
}

// UseSuite replaces the kem key by the next epoch, of this suite.
func (a *Appliance) UseSuite(suite uint8) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.suite = suite
	a.rotateKEMLocked()
}

func (a *Appliance) rotateKEMLocked() {
	a.kemEpoch++
	a.kem = a.agreement(trust.UseKEM, a.kemEpoch)
}

// RotateRoot replaces the root for this reason. The new one certifies the same decision key under another epoch.
func (a *Appliance) RotateRoot(reason uint64) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.root, a.next = a.next, NewSigner(a.t)
	a.introduce(reason)
	a.decisionEpoch++
	a.certify(trust.UseDecision, a.decisionEpoch, a.decision.Public())
	a.rotateKEMLocked()
}

// RuleOut replaces the decision key by the next epoch, whose KeyCert rules out those before it.
func (a *Appliance) RuleOut() {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.decisionEpoch++
	a.decision = NewSigner(a.t)
	a.certs[trust.UseDecision] = a.sign(trust.KeyCert{
		Epoch: a.decisionEpoch, Use: trust.UseDecision, Key: a.decision.Public(), MinEpoch: &a.decisionEpoch,
	}, a.from, 25*time.Hour)
	a.rotateKEMLocked()
}

// Do sets the behaviour from now on.
func (a *Appliance) Do(b Behaviour) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.do = b
}

// Root returns the root hash in activation codes.
func (a *Appliance) Root() protocol.RootHash { return a.root.Public().RootHash() }

// Device returns the device's handle.
func (a *Appliance) Device() protocol.DeviceHandle { return a.device.Handle() }

// Acts returns the number of approved operations of all clients by counter.
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

// Highest returns the highest counter of the received M1s.
func (a *Appliance) Highest() uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	var highest uint32
	for _, counter := range a.highest {
		highest = max(highest, counter)
	}
	return highest
}
