package appliancetest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
)

// Operator is an administrator with a key in a file.
type Operator struct {
	Name   string
	Key    change.FileKey
	Public protocol.PublicKey
}

// NewOperator returns an operator with a new key.
func NewOperator(t *testing.T, name string) Operator {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := protocol.CompressKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return Operator{name, change.FileKey{PrivateKey: private}, public}
}

// Sign countersigns a request.
func (o Operator) Sign(t *testing.T, h change.Hash) []byte {
	t.Helper()
	s, err := change.Sign(t.Context(), o.Key, o.Public, h)
	if err != nil {
		t.Fatal(err)
	}
	return s.Marshal()
}

// Board is an appliance with three administrators and quorums of two.
type Board struct {
	*Bench
	Ann, Bob, Cat Operator
}

// TwoOfThree is a [quorum] of two for everything that a test asks for.
const TwoOfThree = `
[quorum]
"key.destroy" = 2
"device.invite" = 2
"policy.apply" = 2
"admin.add" = 2
"admin.revoke" = 2
`

// QuorumPolicy returns the default policy with another [quorum].
func QuorumPolicy(quorum string) []byte {
	return bytes.Replace(policy.Default(), []byte("[quorum]\nlocal = true\n"), []byte(quorum), 1)
}

// NewBoard returns an appliance with three administrators and a policy with this [quorum].
func NewBoard(t *testing.T, quorum string) *Board {
	t.Helper()
	m := templateOf(t, quorum, func() template {
		b := (&Board{Bench: New(t)}).elect()
		b.Executes(rules.Draft(QuorumPolicy(quorum)))
		m := b.snapshot()
		m.operators = [3]Operator{b.Ann, b.Bob, b.Cat}
		return m
	})
	return &Board{Bench: m.open(t), Ann: m.operators[0], Bob: m.operators[1], Cat: m.operators[2]}
}

// NewBoardWithout returns an appliance with three administrators that has no version of a key.
func NewBoardWithout(t *testing.T, key string) *Board {
	t.Helper()
	return (&Board{Bench: found(t, key)}).elect()
}

// elect adds the administrators.
func (b *Board) elect() *Board {
	b.Ann, b.Bob, b.Cat = NewOperator(b.T, "ann"), NewOperator(b.T, "bob"), NewOperator(b.T, "cat")
	for _, o := range []Operator{b.Ann, b.Bob, b.Cat} {
		b.Executes(requests.DraftAdmin(o.Name, o.Public))
	}
	return b
}

// Executes asks for a change that is executed at once.
func (b *Board) Executes(ask change.Draft) requests.Change {
	b.Helper()
	c, err := b.Requests.Ask(b.Context(), ask)
	if err != nil || c.State != store.ChangeExecuted {
		b.Fatalf("%s is %s: %v", ask.Kind, c.State, err)
	}
	return c
}

// Waits asks for a change that waits for one more.
func (b *Board) Waits(ask change.Draft) requests.Change {
	b.Helper()
	c, err := b.Requests.Ask(b.Context(), ask)
	if err != nil || c.State != store.ChangeOpen || c.Ruling.MissingAdministrators() != 1 {
		b.Fatalf("%s is %s, %d missing: %v", ask.Kind, c.State, c.Ruling.MissingAdministrators(), err)
	}
	return c
}

// Signed signs a request, by the admin socket if raw is nil.
func (b *Board) Signed(c requests.Change, raw []byte) requests.Change {
	b.Helper()
	c, err := b.Requests.Sign(b.Context(), c.Hash.ID(), raw)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// Invitation drafts the invitation of a device.
func Invitation(name string) change.Draft {
	code := make([]byte, 32)
	_, _ = rand.Read(code)
	return change.Draft{Kind: policy.DeviceInvite, Parameters: change.Parameters{
		"name": name, "display": name, "floor": uint64(1), "ttl_s": uint64(3600), "replace": false, "code_sha256": code,
	}}
}

// Invitations counts the invitations of the store.
func (b *Board) Invitations() uint64 { return b.Tally().Invitations }

// Taken stores a request in the state that an appliance leaves it in when it is killed
// after the request was taken.
func (b *Board) Taken(ask change.Draft) requests.Change {
	b.Helper()
	return b.stored(ask, store.Change{State: store.ChangeTaken, Required: 2, Signed: []string{"ann", "bob"}})
}

// Untaken stores a request in the state that an appliance leaves it in when it is killed after the
// second signature was stored, and before the request was taken.
func (b *Board) Untaken(ask change.Draft) requests.Change {
	b.Helper()
	return b.stored(ask, store.Change{State: store.ChangeOpen})
}

// stored stores a request that ann and bob have signed.
func (b *Board) stored(ask change.Draft, row store.Change) requests.Change {
	b.Helper()
	c, err := b.Requests.Preview(b.Context(), ask)
	if err != nil {
		b.Fatal(err)
	}
	row.ID, row.Document = c.Hash.ID(), c.Document
	row.CreatedAt, row.ExpiresAt = b.Clock.Now(), b.Clock.Now().Add(time.Hour)
	for _, o := range []Operator{b.Ann, b.Bob} {
		row.Signatures = append(row.Signatures, store.ChangeSignature{Signer: change.SignerOf(o.Public), Signature: o.Sign(b.T, c.Hash), At: b.Clock.Now()})
	}
	if err := b.Store.AddChange(b.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
		b.Fatal(err)
	}
	return c
}

// Resumed restarts the appliance, has it finish the interrupted change, and returns the
// request.
func (b *Board) Resumed(id change.ID) requests.Change {
	b.Helper()
	b.Restart()
	b.Requests.Resume(b.Context())
	c, err := b.Requests.Get(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// EndedChange stores a request that has ended, the n-th of a bench.
func EndedChange(b *Bench, n int) {
	b.Helper()
	r := change.Request{
		Version: change.Version, Kind: policy.ClientInvite, Domain: "test.example", By: policy.Local, Created: 1, Expires: 2,
		Parameters: change.Parameters{"name": fmt.Sprintf("phone-%d", n), "roles": []string{}, "ttl_s": uint64(86400), "code_sha256": make([]byte, 32)},
	}
	binary.BigEndian.PutUint64(r.Nonce[:], uint64(n))
	document := r.Marshal()
	row := store.Change{
		ID: change.HashOf(document).ID(), Document: document, State: store.ChangeExecuted, CreatedAt: b.Clock.Now(), ExpiresAt: b.Clock.Now(),
		EndedAt: b.Clock.Now(), Required: 1, Signed: []string{policy.Local}, Signatures: []store.ChangeSignature{{At: b.Clock.Now()}},
	}
	if _, err := b.Store.ChangesInForce(b.Context()); err != nil { // as every request is looked at
		b.Fatal(err)
	}
	if err := b.Store.AddChange(b.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
		b.Fatal(err)
	}
}
