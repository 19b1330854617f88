// Package appliancetest gives the tests of the appliance's parts an appliance with a real
// store, a token in memory, and phones, devices and administrators that use it.
package appliancetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/enrol"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm/memory"
	"countersign/policy"
	"countersign/protocol"
	protocolenrol "countersign/protocol/enrol"
	"countersign/protocol/trust"
)

// Clock is a clock that a test sets.
type Clock struct {
	mu  sync.Mutex
	now time.Time // guarded by mu
}

// Now returns the time of the clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance sets the clock forward.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Bench is an appliance with a real store, a token in memory and one device.
type Bench struct {
	*testing.T
	*appliance.Appliance
	Store   store.Store
	Path    string // of the database
	Token   *memory.Token
	Keyring *keyuse.Keys
	Seals   *store.Seals
	Clock   *Clock
	Gate    store.Device
	Trust   trust.State
}

// template is an appliance as its database file and its token. The first bench of a process
// makes it; every bench starts with a copy.
type template struct {
	database  []byte
	token     *memory.Token
	root      protocol.PublicKey
	operators [3]Operator // of a board
}

var templates = struct {
	sync.Mutex
	made map[string]template // by [quorum] of the policy; "": no administrators
}{made: map[string]template{}}

// templateOf returns a template, which is made once in a process.
func templateOf(t *testing.T, name string, build func() template) template {
	t.Helper()
	templates.Lock()
	made, ok := templates.made[name]
	templates.Unlock()
	if !ok {
		made = build()
		templates.Lock()
		templates.made[name] = made
		templates.Unlock()
	}
	return made
}

// snapshot closes a bench's store and returns the bench as a template.
func (b *Bench) snapshot() template {
	b.Helper()
	err := b.Store.Close()
	if err != nil {
		b.Fatal(err)
	}
	database, err := os.ReadFile(b.Path)
	if err != nil {
		b.Fatal(err)
	}
	return template{database: database, token: b.Token.Clone(), root: b.Keyring.Root()}
}

// New returns a bench of its own for a test.
func New(t *testing.T) *Bench {
	t.Helper()
	return templateOf(t, "", func() template { return found(t, "").snapshot() }).open(t)
}

func openStore(t *testing.T, path string) store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newBench(t *testing.T, token *memory.Token) *Bench {
	path := filepath.Join(t.TempDir(), "countersign.db")
	return &Bench{T: t, Path: path, Token: token, Seals: store.NewSeals(nil), Clock: &Clock{now: time.Now().Truncate(time.Second)}}
}

// found holds the ceremony and enrols the device. The appliance has no rows of the key without, as if
// its release had not known it.
func found(t *testing.T, without string) *Bench {
	t.Helper()
	ctx := t.Context()
	b := newBench(t, memory.New())
	s := openStore(t, b.Path)
	b.Store = s
	pinned, err := keylife.Ceremony(ctx, b.Token, "test.example", b.Clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	pinned.Keys = slices.DeleteFunc(pinned.Keys, func(k store.Key) bool { return k.Name == without })
	pinned.Policy = store.Policy{Version: 1, Document: policy.Default(), ActivatedAt: b.Clock.Now()}
	err = errors.Join(keyuse.SealKeys(ctx, b.Token, pinned.Keys, b.Seals), s.Unseal(ctx, b.Seals, nil))
	if err == nil {
		err = s.AddTrust(ctx, pinned, audit.NewRecord(audit.KindCeremony, "trust", nil))
	}
	if err != nil {
		t.Fatal(err)
	}
	b.Load(protocol.PublicKey(pinned.Keys[0].Public))
	b.EnrolDevice("gate")
	return b
}

// open starts a bench on a copy of a template.
func (m template) open(t *testing.T) *Bench {
	t.Helper()
	b := newBench(t, m.token.Clone())
	if err := os.WriteFile(b.Path, m.database, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, b.Path)
	b.Store = s
	if err := keyuse.Unseal(t.Context(), b.Token, s, b.Seals, keyuse.Pins{Root: m.root}); err != nil {
		t.Fatal(err)
	}
	b.Load(m.root)
	var err error
	if b.Gate, err = b.Parties.DeviceNamed(t.Context(), "gate"); err != nil {
		t.Fatal(err)
	}
	return b
}

// Load loads the keys of the store and starts the appliance.
func (b *Bench) Load(root protocol.PublicKey) {
	b.Helper()
	var err error
	if b.Keyring, err = keyuse.Load(b.Context(), b.Token, b.Store, keyuse.Pins{Root: root}); err != nil {
		b.Fatal(err)
	}
	b.Restart()
	if b.Trust, err = b.Enrol.Trust().Resolve(root.RootHash(), uint64(b.Clock.Now().Unix())); err != nil {
		b.Fatal(err)
	}
}

// Tamper runs a statement on the database as another program would, and requires that it
// changes this number of rows.
func (b *Bench) Tamper(rows int64, statement string, args ...any) {
	b.Helper()
	db, err := sql.Open("sqlite", b.Path+"?_pragma=busy_timeout(5000)")
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

// UnderNothing reports whether no record in force is under a version of mac.
func (b *Bench) UnderNothing(version uint64) bool {
	b.Helper()
	_, under, err := b.Store.Under(b.Context(), version)
	return err == nil && under == 0
}

// Restart makes a new appliance on the same store and token; options change its
// configuration.
func (b *Bench) Restart(options ...func(*appliance.Config)) {
	b.Helper()
	if err := b.Keyring.Keep(b.Context(), b.Seals); err != nil {
		b.Fatal(err)
	}
	c := appliance.Config{Store: b.Store, Keys: b.Keyring, Logger: hclog.NewNullLogger(), Now: b.Clock.Now}
	for _, set := range options {
		set(&c)
	}
	var err error
	if b.Appliance, err = appliance.New(b.Context(), c); err != nil {
		b.Fatal(err)
	}
}

// AddPolicy stores a policy without a change request. Restart activates it.
func (b *Bench) AddPolicy(version uint64, doc []byte) {
	b.Helper()
	p := store.Policy{Version: version, Document: doc, ActivatedAt: b.Clock.Now()}
	if err := b.Store.AddPolicy(b.Context(), p, audit.NewRecord(audit.KindPolicy, "policy", nil)); err != nil {
		b.Fatal(err)
	}
}

// Code invites a party and returns its activation code.
func (b *Bench) Code(kind store.Kind, name string) protocolenrol.ActivationCode {
	b.Helper()
	code, _, err := b.Enrol.Invite(b.Context(), enrol.Invite{Kind: kind, Name: name})
	if err != nil {
		b.Fatal(err)
	}
	return code
}

// EnrolDevice invites and enrols a device.
func (b *Bench) EnrolDevice(name string) store.Device {
	b.Helper()
	body, err := json.Marshal(protocolenrol.DeviceRequest{ActivationCode: b.Code(store.KindDevice, name), CSR: NewCSR(b.T)})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := b.Enrol.Device(b.Context(), body); err != nil {
		b.Fatal(err)
	}
	d, err := b.Parties.DeviceNamed(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// NewCSR returns a certificate request for a new key.
func NewCSR(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// Tally returns the counts of the store.
func (b *Bench) Tally() store.Tally {
	b.Helper()
	tally, err := b.Store.Tally(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return tally
}

// LastRecord returns the newest audit record.
func (b *Bench) LastRecord() audit.Record {
	b.Helper()
	records, err := b.Store.LastRecords(b.Context(), 1)
	if err != nil || len(records) != 1 {
		b.Fatalf("%d records, %v", len(records), err)
	}
	return records[0]
}

// Step takes a step of a key that must be possible.
func (b *Bench) Step(verb keyplan.Verb, ref string) {
	b.Helper()
	if _, err := b.TryStep(keyplan.Step{Verb: verb}, ref); err != nil {
		b.Fatal(err)
	}
}

// TryStep takes a step of a key, such as "mac@2".
func (b *Bench) TryStep(s keyplan.Step, ref string) ([]keyplan.View, error) {
	b.Helper()
	var err error
	if s.Name, s.Version, err = keyplan.ParseRef(ref); err != nil {
		b.Fatal(err)
	}
	return b.Keys.Take(b.Context(), s)
}

// Version returns the version in use of a key.
func (b *Bench) Version(name string) uint64 {
	b.Helper()
	k, err := b.Keyring.Current(name, b.Clock.Now())
	if err != nil {
		b.Fatal(err)
	}
	return k.Version
}

// RunUntil runs the appliance's background until a condition holds.
func (b *Bench) RunUntil(what string, ok func() bool) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	ended := make(chan struct{})
	go func() { defer close(ended); b.Appliance.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !ok() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			b.Fatalf("never: %s", what)
		}
	}
}

// Client returns the row of a client.
func (b *Bench) Client(name string) store.Client {
	b.Helper()
	c, err := b.Parties.ClientNamed(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// GuardOf returns the password guard of a phone.
func (b *Bench) GuardOf(p *Phone) store.Guard {
	b.Helper()
	g, err := b.Store.Guard(b.Context(), p.ID)
	if err != nil {
		b.Fatal(err)
	}
	return g
}

// Forgeries requires that do raises the alarm.
func (b *Bench) Forgeries(do func()) {
	b.Helper()
	before := b.Seals.Forged()
	do()
	if b.Seals.Forged() == before {
		b.Error("no alarm")
	}
}

// Column reads one value of the database as another program would.
func Column[T any](b *Bench, query string, args ...any) (v T) {
	b.Helper()
	db, err := sql.Open("sqlite", b.Path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.QueryRow(query, args...).Scan(&v); err != nil {
		b.Fatalf("%s: %v", query, err)
	}
	return v
}
