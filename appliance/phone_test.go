package appliance_test

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/keylife"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm/memory"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/password"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// clock is a clock that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time // guarded by mu
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// bench is an appliance with a real store, a token in memory and one device.
type bench struct {
	*testing.T
	*appliance.Appliance
	store  store.Store
	path   string // of the database
	token  *memory.Token
	keys   *keyuse.Keys
	seals  *store.Seals
	clock  *clock
	device store.Device
	trust  trust.State
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "countersign.db")
	s, err := sqlite.Open(ctx, sqlite.Config{Path: path, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	b := &bench{T: t, store: s, path: path, token: memory.New(), clock: &clock{now: time.Now().Truncate(time.Second)}}
	pinned, err := keylife.Ceremony(ctx, b.token, "test.example", b.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	pinned.Policy = store.Policy{Version: 1, Document: policy.Default(), ActivatedAt: b.clock.Now()}
	b.seals = store.NewSeals(nil)
	err = errors.Join(keyuse.SealKeys(ctx, b.token, pinned.Keys, b.seals), s.Unseal(ctx, b.seals, nil))
	if err == nil {
		err = s.AddTrust(ctx, pinned, audit.NewRecord(audit.KindCeremony, "trust", nil))
	}
	if err != nil {
		t.Fatal(err)
	}
	if b.keys, err = keyuse.Load(ctx, b.token, s, keyuse.Pins{Root: protocol.PublicKey(pinned.Keys[0].Public)}); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.trust, err = b.Trust().Resolve(b.keys.Root().RootHash(), uint64(b.clock.Now().Unix()))
	if err != nil {
		t.Fatal(err)
	}
	b.device = b.enrolDevice("gate")
	return b
}

// tamper runs a statement on the database as another program would, and requires that it
// changes so many rows.
func (b *bench) tamper(rows int64, statement string, args ...any) {
	b.Helper()
	db, err := sql.Open("sqlite", b.path+"?_pragma=busy_timeout(5000)")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	res, err := db.Exec(statement, args...)
	if err != nil {
		b.Fatalf("%s: %v", statement, err)
	}
	if n, err := res.RowsAffected(); err != nil || n != rows {
		b.Fatalf("%s: %d rows, %v", statement, n, err)
	}
}

// underNothing reports whether no record in force is under a version of mac.
func (b *bench) underNothing(version uint64) bool {
	b.Helper()
	_, under, err := b.store.Under(b.Context(), version)
	return err == nil && under == 0
}

// restart makes a new appliance on the same store and token.
func (b *bench) restart() {
	b.Helper()
	if err := b.keys.Keep(b.Context(), b.seals); err != nil {
		b.Fatal(err)
	}
	a, err := appliance.New(b.Context(), appliance.Config{Store: b.store, Keys: b.keys, Logger: hclog.NewNullLogger(), Now: b.clock.Now})
	if err != nil {
		b.Fatal(err)
	}
	b.Appliance = a
}

func (b *bench) addPolicy(version uint64, doc []byte) {
	b.Helper()
	p := store.Policy{Version: version, Document: doc, ActivatedAt: b.clock.Now()}
	if err := b.store.AddPolicy(b.Context(), p, audit.NewRecord(audit.KindPolicy, "policy", nil)); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) invite(kind store.Kind, name string) enrol.ActivationCode {
	b.Helper()
	code, _, err := b.Invite(b.Context(), appliance.Invite{Kind: kind, Name: name})
	if err != nil {
		b.Fatal(err)
	}
	return code
}

func (b *bench) enrolDevice(name string) store.Device {
	b.Helper()
	body, err := json.Marshal(enrol.DeviceRequest{ActivationCode: b.invite(store.KindDevice, name), CSR: newCSR(b.T)})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := b.EnrolDevice(b.Context(), body); err != nil {
		b.Fatal(err)
	}
	d, err := b.DeviceNamed(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// phone is the client's side, from the protocol package alone.
type phone struct {
	b       *bench
	name    string
	id      protocol.ClientID
	key     softKey
	uv      *softKey
	k       *password.Verifier
	counter uint32

	attestation []byte // of the UV key; empty: none is sent
}

type softKey struct{ *ecdsa.PrivateKey }

func newSoftKey() softKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return softKey{key}
}

func (k softKey) point() protocol.PublicKey {
	p, err := protocol.CompressKey(&k.PublicKey)
	if err != nil {
		panic(err)
	}
	return p
}

func (k softKey) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

// stranger is a phone that was never enrolled.
func (b *bench) stranger() *phone {
	key := newSoftKey()
	return &phone{b: b, key: key, id: protocol.ClientIDOf(key.point())}
}

func (b *bench) enrol(name string) *phone {
	b.Helper()
	return b.enrolAs(name, b.stranger())
}

// enrolFull enrols a phone with password and UV key, with these roles.
func (b *bench) enrolFull(name string, roles ...string) *phone {
	b.Helper()
	return b.enrolAs(name, b.fullPhone(), roles...)
}

func (b *bench) fullPhone() *phone {
	p, uv := b.stranger(), newSoftKey()
	p.uv, p.k = &uv, new(password.Verifier)
	_, _ = rand.Read(p.k[:])
	return p
}

func (b *bench) enrolAs(name string, p *phone, roles ...string) *phone {
	b.Helper()
	p.name = name
	code, _, err := b.Invite(b.Context(), appliance.Invite{Kind: store.KindClient, Name: name, Roles: roles})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := b.Enrol(b.Context(), p.request(code)); err != nil {
		b.Fatal(err)
	}
	return p
}

func (p *phone) request(code enrol.ActivationCode) []byte {
	p.b.Helper()
	req := enrol.Request{ActivationCode: code, SigningKey: p.key.point()}
	var uv protocol.DigestSigner
	if p.uv != nil {
		point := p.uv.point()
		req.UVKey, uv = &point, *p.uv
		if len(p.attestation) > 0 {
			req.Attestation = p.attestation
		}
	}
	if p.k != nil {
		req.Password = p.password()
	}
	req, err := enrol.Sign(p.b.Context(), req, p.key, uv)
	if err != nil {
		p.b.Fatal(err)
	}
	body, err := json.Marshal(req)
	if err != nil {
		p.b.Fatal(err)
	}
	return body
}

// password wraps the phone's verifier for the appliance's enrol key.
func (p *phone) password() *enrol.Password {
	p.b.Helper()
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		p.b.Fatal(err)
	}
	point, err := protocol.CompressPoint(ephemeral.PublicKey().Bytes())
	if err != nil {
		p.b.Fatal(err)
	}
	enrolKey, _ := p.b.trust.Key(trust.UseEnrol)
	wrapped, err := password.Wrap(*p.k, ephemeral, derive.PasswordImport{
		Root: p.b.trust.Root.RootID(), Ephemeral: point, Enrol: enrolKey.KeyCert.Key, SigningKey: p.key.point(),
	})
	if err != nil {
		p.b.Fatal(err)
	}
	d := password.Default
	return &enrol.Password{
		MemoryKiB: d.MemoryKiB, Iterations: d.Iterations, Parallelism: uint8(d.Parallelism), Ephemeral: point, Wrapped: [40]byte(wrapped),
	}
}

// session is one authorization as the phone sees it.
type session struct {
	p       *phone
	p1      message.P1
	m1      []byte
	channel message.Channel
	es      message.Secret
	nonce   protocol.Nonce
	res     deviceapi.ApplyResponse
	p2      message.P2
	stmt    message.Statement
}

// p1 is the next application of the phone.
func (p *phone) p1(service protocol.Service) message.P1 {
	p.counter++
	var random [8]byte
	_, _ = rand.Read(random[:])
	return message.P1{Client: p.id, Serial: protocol.NewSerial(p.counter, random), Service: service, Level: 1}
}

// apply runs the first round trip.
func (p *phone) apply(p1 message.P1, order deviceapi.Order) (*session, error) {
	p.b.Helper()
	return p.applyWith(p1, deviceapi.ApplyRequest{Order: order, Link: deviceapi.LinkWire})
}

// applyWith is apply with whatever else the device says.
func (p *phone) applyWith(p1 message.P1, req deviceapi.ApplyRequest) (*session, error) {
	p.b.Helper()
	kem, ok := p.b.trust.Key(trust.UseKEM)
	if !ok {
		p.b.Fatal("no kem key")
	}
	s := &session{p: p, p1: p1}
	_, _ = rand.Read(s.nonce[:])
	var err error
	if s.m1, s.es, err = message.SealM1(p.b.trust.Root.RootID(), kem.Epoch, kem.KeyCert.Key, p1.Marshal()); err != nil {
		p.b.Fatal(err)
	}
	req.M1, req.Nonce = s.m1, s.nonce
	s.res, err = p.b.Apply(p.b.Context(), p.b.device, req)
	if err != nil {
		return s, err
	}
	s.open()
	return s, nil
}

func (s *session) open() {
	t := s.p.b
	t.Helper()
	chal, err := message.ChallengeOf(s.res.M2)
	if err != nil {
		t.Fatal(err)
	}
	s.channel = message.NewChannel(s.es, s.m1, chal)
	raw, err := s.channel.OpenM2(s.res.M2)
	if err != nil {
		t.Fatal(err)
	}
	if s.p2, err = message.ParseP2(raw); err != nil {
		t.Fatal(err)
	}
	s.stmt = message.NewStatement(t.trust.Root.RootID(), s.p1.Marshal(), chal, raw)
}

// challenge is apply for an order of this one service, which must be granted.
func (p *phone) challenge(service protocol.Service, amount *protocol.Amount) *session {
	p.b.Helper()
	s, err := p.apply(p.p1(service), deviceapi.Order{Services: []protocol.Service{service}, Amount: amount})
	if err != nil {
		p.b.Fatal(err)
	}
	if s.p2.Code != 0 {
		p.b.Fatalf("challenge refused with code %d", s.p2.Code)
	}
	return s
}

// m3 is the phone's answer.
func (s *session) m3(v protocol.Verdict) []byte {
	s.p.b.Helper()
	approval := message.Approval{Verdict: v, Slot: protocol.SlotSigning}
	sig, err := message.Countersign(s.p.b.Context(), s.p.key, s.stmt, approval)
	if err != nil {
		s.p.b.Fatal(err)
	}
	return s.channel.SealM3(0, message.P3{Verdict: v, Signature: sig, Slot: protocol.SlotSigning}.Marshal())
}

// with makes an M3 with whatever proof and attempt: nil is the right password.
func (s *session) with(attempt uint8, proof []byte) []byte {
	s.p.b.Helper()
	approval := message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning, Proof: proof}
	var signer protocol.DigestSigner = s.p.key
	if s.p2.Factors.Has(protocol.FactorUV) {
		approval.Slot, signer = protocol.SlotUV, *s.p.uv
	}
	if proof == nil {
		right := s.p.k.Proof(s.stmt.Hash())
		approval.Proof = right[:]
	}
	sig, err := message.Countersign(s.p.b.Context(), signer, s.stmt, approval)
	if err != nil {
		s.p.b.Fatal(err)
	}
	return s.channel.SealM3(attempt, message.P3{Verdict: protocol.Approve, Signature: sig, Slot: approval.Slot, Proof: approval.Proof}.Marshal())
}

// answer is what came back for an M3.
type answer struct {
	p4  message.P4
	res deviceapi.CountersignResponse
}

func (s *session) send(m3 []byte) (answer, error) {
	t := s.p.b
	t.Helper()
	res, err := t.Countersign(t.Context(), t.device, deviceapi.CountersignRequest{Handle: s.res.Handle, M3: m3})
	if err != nil {
		return answer{}, err
	}
	raw, err := s.channel.OpenM4(m3, res.M4)
	if err != nil {
		t.Fatal(err)
	}
	p4, err := message.ParseP4(raw)
	if err != nil {
		t.Fatal(err)
	}
	if p4.Result != res.Result {
		t.Fatalf("the phone is told %s, the device %s", p4.Result, res.Result)
	}
	return answer{p4: p4, res: res}, nil
}

// must sends an M3 that is answered by an M4.
func (s *session) must(m3 []byte) answer {
	s.p.b.Helper()
	a, err := s.send(m3)
	if err != nil {
		s.p.b.Fatal(err)
	}
	return a
}

// verify checks a decision as the device does.
func (s *session) verify(decision []byte, amount *protocol.Amount) (receipt.Decision, error) {
	chal, err := message.ChallengeOf(s.res.M2)
	if err != nil {
		return receipt.Decision{}, err
	}
	return receipt.Check{
		Root: s.p.b.trust.Root, KeyCerts: s.p.b.trust.KeyCerts(trust.UseDecision), Now: uint64(s.p.b.clock.Now().Unix()),
		Device: s.p.b.device.ID, Nonce: s.nonce, Challenges: []protocol.Challenge{chal},
		Services: []protocol.Service{s.p1.Service}, Amount: amount, Floor: 1,
	}.Verify(decision)
}

func (b *bench) tally() store.Tally {
	b.Helper()
	tally, err := b.store.Tally(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return tally
}

// lastRecord is the newest audit record.
func (b *bench) lastRecord() audit.Record {
	b.Helper()
	records, err := b.store.Records(b.Context(), b.tally().Records-1, 10)
	if err != nil || len(records) != 1 {
		b.Fatalf("%d records, %v", len(records), err)
	}
	return records[0]
}
