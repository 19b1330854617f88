package appliance_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
)

// operator is an administrator with a key in a file.
type operator struct {
	name   string
	key    change.FileKey
	public protocol.PublicKey
}

func newOperator(t *testing.T, name string) operator {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := protocol.CompressKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return operator{name, change.FileKey{PrivateKey: private}, public}
}

func (o operator) sign(t *testing.T, h change.Hash) []byte {
	t.Helper()
	s, err := change.Sign(t.Context(), o.key, o.public, h)
	if err != nil {
		t.Fatal(err)
	}
	return s.Marshal()
}

// board is an appliance with three administrators and quorums of two.
type board struct {
	*bench
	ann, bob, cat operator
}

const twoOfThree = `
[quorum]
"key.destroy" = 2
"device.invite" = 2
"policy.apply" = 2
"admin.add" = 2
"admin.revoke" = 2
`

// quorumPolicy is the default policy with another [quorum].
func quorumPolicy(quorum string) []byte {
	return bytes.Replace(policy.Default(), []byte("[quorum]\nlocal = true\n"), []byte(quorum), 1)
}

func newBoard(t *testing.T, quorum string) *board {
	t.Helper()
	b := &board{bench: newBench(t), ann: newOperator(t, "ann"), bob: newOperator(t, "bob"), cat: newOperator(t, "cat")}
	for _, o := range []operator{b.ann, b.bob, b.cat} {
		b.executes(appliance.AskAdmin(o.name, o.public))
	}
	b.executes(appliance.AskPolicy(quorumPolicy(quorum)))
	return b
}

func (b *board) executes(ask appliance.Ask) appliance.Change {
	b.Helper()
	c, err := b.Ask(b.Context(), ask)
	if err != nil || c.State != store.ChangeExecuted {
		b.Fatalf("%s is %s: %v", ask.Kind, c.State, err)
	}
	return c
}

// waits asks for a change that waits for one more.
func (b *board) waits(ask appliance.Ask) appliance.Change {
	b.Helper()
	c, err := b.Ask(b.Context(), ask)
	if err != nil || c.State != store.ChangeOpen || c.Ruling.MissingAdministrators() != 1 {
		b.Fatalf("%s is %s, %d missing: %v", ask.Kind, c.State, c.Ruling.MissingAdministrators(), err)
	}
	return c
}

func (b *board) signed(c appliance.Change, raw []byte) appliance.Change {
	b.Helper()
	c, err := b.SignChange(b.Context(), c.Hash.ID(), raw)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// invitation asks for a device; each has a name of its own.
func invitation(name string) appliance.Ask {
	code := make([]byte, 32)
	_, _ = rand.Read(code)
	return appliance.Ask{Kind: policy.DeviceInvite, Parameters: change.Parameters{
		"name": name, "display": name, "floor": uint64(1), "ttl_s": uint64(3600), "replace": false, "code_sha256": code,
	}}
}

func (b *board) invitations() uint64 { return b.tally().Invitations }

// TestQuorum: local and one of three; the other signature comes too late to matter.
func TestQuorum(t *testing.T) {
	b := newBoard(t, twoOfThree)
	before := b.invitations()
	c := b.waits(invitation("door"))
	if !slices.Equal(c.Signed, []string{"local"}) || !slices.Equal(c.Missing, []string{"ann", "bob", "cat"}) {
		t.Errorf("signed by %v, missing %v", c.Signed, c.Missing)
	}
	if c = b.signed(c, nil); c.State != store.ChangeOpen || c.Ruling.Signed() != 1 {
		t.Errorf("local twice counts %d", c.Ruling.Signed())
	}
	if b.invitations() != before {
		t.Fatal("a device was invited before the quorum was there")
	}
	if c = b.signed(c, b.bob.sign(t, c.Hash)); c.State != store.ChangeExecuted || b.invitations() != before+1 {
		t.Fatalf("change is %s, %d invitations more", c.State, b.invitations()-before)
	}
	rec := b.lastRecord()
	words := rec.Words()
	if rec.Kind != audit.KindChanges || words["event"] != "executed" || len(words["signatures"].([]any)) != 2 {
		t.Errorf("transcript is %v", words)
	}
	if _, err := b.SignChange(t.Context(), c.Hash.ID(), b.ann.sign(t, c.Hash)); !errors.Is(err, appliance.ErrOver) {
		t.Errorf("after execution: %v", err)
	}
}

// TestKeysOnly: with local = false the socket asks and does not count.
func TestKeysOnly(t *testing.T) {
	b := newBoard(t, twoOfThree+"local = false\n")
	c, err := b.Ask(t.Context(), invitation("door"))
	if err != nil || c.Ruling.MissingAdministrators() != 2 {
		t.Fatalf("%d missing: %v", c.Ruling.MissingAdministrators(), err)
	}
	if _, err := b.SignChange(t.Context(), c.Hash.ID(), nil); !errors.Is(err, appliance.ErrSigner) {
		t.Errorf("the socket signs: %v", err)
	}
	if c = b.signed(c, b.ann.sign(t, c.Hash)); c.State != store.ChangeOpen || c.Ruling.MissingAdministrators() != 1 {
		t.Fatalf("one of three: %s, %d missing", c.State, c.Ruling.MissingAdministrators())
	}
	if c = b.signed(c, b.ann.sign(t, c.Hash)); c.State != store.ChangeOpen || c.Ruling.Signed() != 1 {
		t.Fatalf("one twice: %s, counts %d", c.State, c.Ruling.Signed())
	}
	if c = b.signed(c, b.cat.sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Fatalf("two of three: %s", c.State)
	}
}

// TestAttacks: nothing of it counts, and the request still waits for one.
func TestAttacks(t *testing.T) {
	b := newBoard(t, twoOfThree)
	stranger := newOperator(t, "eve")
	suspended := b.cat
	if _, err := b.SuspendAdmin(t.Context(), suspended.name); err != nil {
		t.Fatal(err)
	}
	other := b.waits(invitation("other"))
	c := b.waits(invitation("door"))
	good := b.ann.sign(t, c.Hash)
	altered := bytes.Clone(c.Document)
	altered[len(altered)-1] ^= 1
	asAnn, err := change.ParseSignature(stranger.sign(t, c.Hash))
	if err != nil {
		t.Fatal(err)
	}
	asAnn.Signer = change.SignerOf(b.ann.public)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	wrongAAD := b.signedAs("OA1 keycert v1", b.ann, c.Hash)
	for name, attack := range map[string]struct {
		raw  []byte
		want error
	}{
		"a byte altered in the signature": {flipped, change.ErrSignature},
		"a byte altered in the request":   {b.ann.sign(t, change.HashOf(altered)), change.ErrSignature},
		"another request's":               {b.ann.sign(t, other.Hash), change.ErrSignature},
		"another external_aad":            {wrongAAD, change.ErrSignature},
		"a stranger's":                    {stranger.sign(t, c.Hash), appliance.ErrSigner},
		"a stranger's in ann's name":      {asAnn.Marshal(), change.ErrSignature},
		"a suspended administrator's":     {suspended.sign(t, c.Hash), appliance.ErrSigner},
		"nothing":                         {[]byte{}, change.ErrSignature},
		"trailing byte":                   {append(bytes.Clone(good), 0), change.ErrSignature},
	} {
		if _, err := b.SignChange(t.Context(), c.Hash.ID(), attack.raw); !errors.Is(err, attack.want) {
			t.Errorf("%s: %v, want %v", name, err, attack.want)
		}
	}
	if c, err = b.ChangeOf(t.Context(), c.Hash.ID()); err != nil || c.State != store.ChangeOpen || c.Ruling.Signed() != 1 {
		t.Fatalf("request is %s, %d signed: %v", c.State, c.Ruling.Signed(), err)
	}
	if _, err := b.SignChange(t.Context(), change.ID{1}, good); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an id that is not there: %v", err)
	}
	b.clock.advance(change.DefaultLife)
	if _, err := b.SignChange(t.Context(), c.Hash.ID(), good); !errors.Is(err, appliance.ErrOver) {
		t.Errorf("expired: %v", err)
	}
	if rec := b.lastRecord().Words(); rec["event"] != "expired" {
		t.Errorf("last record is %v", rec)
	}
}

// signedAs is a signature with an external_aad of another use.
func (b *board) signedAs(aad string, o operator, h change.Hash) []byte {
	b.Helper()
	s, err := change.Sign(b.Context(), aadSigner{o.key, protocol.SigStructure(aad, h[:])}, o.public, h)
	if !errors.Is(err, change.ErrSignature) {
		b.Fatalf("signing under another external_aad: %+v, %v", s, err)
	}
	rs, err := o.key.SignDigest(b.Context(), digestOf(protocol.SigStructure(aad, h[:])))
	if err != nil {
		b.Fatal(err)
	}
	return change.Signature{Signer: change.SignerOf(o.public), RS: [64]byte(rs)}.Marshal()
}

// aadSigner signs other bytes than it is asked to.
type aadSigner struct {
	change.FileKey
	structure []byte
}

func (s aadSigner) SignDigest(ctx context.Context, _ []byte) ([]byte, error) {
	return s.FileKey.SignDigest(ctx, digestOf(s.structure))
}

func digestOf(b []byte) []byte { sum := change.HashOf(b); return sum[:] }

// TestSignerLeaves: a signature given while active does not count once its maker is
// suspended or revoked.
func TestSignerLeaves(t *testing.T) {
	b := newBoard(t, "[quorum]\n\"device.invite\" = 3\n")
	c, err := b.Ask(t.Context(), invitation("door"))
	if err != nil {
		t.Fatal(err)
	}
	if c = b.signed(c, b.ann.sign(t, c.Hash)); c.Ruling.Signed() != 2 {
		t.Fatalf("%d signed", c.Ruling.Signed())
	}
	if _, err := b.SuspendAdmin(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	if c = b.signed(c, b.bob.sign(t, c.Hash)); c.State != store.ChangeOpen || c.Ruling.Signed() != 2 {
		t.Fatalf("with a suspended signer: %s, %d signed", c.State, c.Ruling.Signed())
	}
	resume, err := b.AskResume(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	b.executes(resume)
	if c = b.signed(c, nil); c.State != store.ChangeExecuted {
		t.Fatalf("resumed: %s, %d signed", c.State, c.Ruling.Signed())
	}
}

// TestStale: what was asked for before the policy changed, or the administrators, is
// refused.
func TestStale(t *testing.T) {
	b := newBoard(t, twoOfThree)
	dora := newOperator(t, "dora")
	add := b.waits(appliance.AskAdmin("dora", dora.public))
	if _, err := b.SuspendAdmin(t.Context(), "cat"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.SignChange(t.Context(), add.Hash.ID(), b.ann.sign(t, add.Hash)); !errors.Is(err, appliance.ErrOver) {
		t.Errorf("after another change of the administrators: %v", err)
	}
	invite, rules := b.waits(invitation("door")), b.waits(appliance.AskPolicy(quorumPolicy("[quorum]\n")))
	if rules = b.signed(rules, b.ann.sign(t, rules.Hash)); rules.State != store.ChangeExecuted {
		t.Fatalf("policy is %s", rules.State)
	}
	if _, err := b.SignChange(t.Context(), invite.Hash.ID(), b.ann.sign(t, invite.Hash)); !errors.Is(err, appliance.ErrOver) {
		t.Errorf("after a change of the policy: %v", err)
	}
	if c, err := b.ChangeOf(t.Context(), invite.Hash.ID()); err != nil || c.State != store.ChangeFailed {
		t.Errorf("stale request is %s: %v", c.State, err)
	}
	b.executes(invitation("door")) // under the new policy
}

func TestWithdrawn(t *testing.T) {
	b := newBoard(t, twoOfThree)
	ask := invitation("door")
	c := b.waits(ask)
	if again := b.waits(ask); again.Hash != c.Hash {
		t.Error("the same request is there twice")
	}
	gone, err := b.WithdrawChange(t.Context(), c.Hash.ID())
	if err != nil || gone.State != store.ChangeWithdrawn {
		t.Fatalf("%s: %v", gone.State, err)
	}
	if _, err := b.SignChange(t.Context(), c.Hash.ID(), b.ann.sign(t, c.Hash)); !errors.Is(err, appliance.ErrOver) {
		t.Errorf("after withdrawal: %v", err)
	}
	if again := b.waits(ask); again.Hash == c.Hash {
		t.Error("the nonce is the same again")
	}
}

func TestNobodyLocksEverybodyOut(t *testing.T) {
	b := newBoard(t, twoOfThree)
	if _, err := b.Ask(t.Context(), appliance.AskPolicy(quorumPolicy("[quorum]\nadmin.add = 5\npolicy.apply = 5\n"))); !errors.Is(err, appliance.ErrInput) {
		t.Errorf("a policy that locks everybody out: %v", err)
	}
	for _, name := range []string{"ann", "bob"} {
		if _, err := b.SuspendAdmin(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.SuspendAdmin(t.Context(), "cat"); !errors.Is(err, appliance.ErrInput) {
		t.Errorf("suspending the last who could undo it: %v", err)
	}
}

// TestWordAgain: a word of the admin socket that does not count, its key was given up, is
// replaced when it is given again, signing or asking.
func TestWordAgain(t *testing.T) {
	b := newBoard(t, twoOfThree)
	for _, asking := range []bool{false, true} {
		ask := invitation("door")
		c, err := b.Preview(t.Context(), ask)
		if err != nil {
			t.Fatal(err)
		}
		row := store.Change{
			ID: c.Hash.ID(), Document: c.Document, State: store.ChangeOpen, CreatedAt: b.clock.Now(), ExpiresAt: b.clock.Now().Add(time.Hour),
			Signatures: []store.ChangeSignature{{Signature: make([]byte, 32), At: b.clock.Now()}},
		}
		if err := b.store.AddChange(t.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
			t.Fatal(err)
		}
		if asking {
			again := b.waits(ask)
			if again.Hash != c.Hash {
				t.Error("the same request is there twice")
			}
			c = again
		} else {
			c = b.signed(c, nil)
		}
		if !slices.Equal(c.Signed, []string{"local"}) {
			t.Errorf("signed by %v", c.Signed)
		}
	}
}

// TestSuspendedAtOnce: of three who are suspended at once, two stay, for they could not be
// brought back otherwise.
func TestSuspendedAtOnce(t *testing.T) {
	for range 5 {
		b := newBoard(t, twoOfThree+"local = false\n")
		var racing sync.WaitGroup
		for _, o := range []operator{b.ann, b.bob, b.cat} {
			racing.Go(func() {
				if _, err := b.SuspendAdmin(t.Context(), o.name); err != nil && !errors.Is(err, appliance.ErrInput) {
					t.Error(err)
				}
			})
		}
		racing.Wait()
		all, err := b.Admins(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		active := slices.DeleteFunc(all, func(one store.Admin) bool { return one.Status != store.Active })
		if len(active) != 2 {
			t.Fatalf("%d administrators are left", len(active))
		}
	}
}

// TestForgedRows: who writes to the database adds no vote.
func TestForgedRows(t *testing.T) {
	b := newBoard(t, twoOfThree)
	c := b.waits(invitation("door"))
	eve := newOperator(t, "eve")
	id := change.SignerOf(eve.public)
	b.tamper(1, `INSERT INTO admin (id, name, public, status, version, created_us, seal) SELECT ?, 'eve', ?, 1, 1, created_us, seal FROM admin WHERE name = 'ann'`,
		id[:], eve.public[:])
	alarms := b.seals.Forged()
	if _, err := b.SignChange(t.Context(), c.Hash.ID(), eve.sign(t, c.Hash)); err == nil || b.seals.Forged() == alarms {
		t.Errorf("a forged administrator: %v", err)
	}

	b = newBoard(t, twoOfThree)
	c = b.waits(invitation("door"))
	r := c.Request
	r.Nonce[0] ^= 1
	document := r.Marshal()
	forged := change.HashOf(document).ID()
	b.tamper(1, `INSERT INTO change (id, document, state, reason, created_us, expires_us, required, signed, seal)
		SELECT ?, ?, 'taken', '', created_us, expires_us, 1, signed, seal FROM change WHERE state = 'open'`, forged[:], document)
	before, alarms := b.invitations(), b.seals.Forged()
	all, err := b.Changes(t.Context())
	listed := slices.ContainsFunc(all, func(c appliance.Change) bool { return c.Hash.ID() == forged })
	if err != nil || listed || b.seals.Forged() == alarms {
		t.Errorf("a forged request among %d: %v, %v", len(all), listed, err)
	}
	if b.invitations() != before {
		t.Error("a forged request was made")
	}
}

// TestAnotherAppliance: what the same operators signed for another appliance is neither
// made, nor gone on with, nor shown as good.
func TestAnotherAppliance(t *testing.T) {
	b := newBoard(t, twoOfThree)
	for i, state := range []store.ChangeState{store.ChangeOpen, store.ChangeTaken, store.ChangeExecuted} {
		c, err := b.Preview(t.Context(), appliance.AskPolicy(quorumPolicy(fmt.Sprintf("[quorum]\n\"key.backup\" = %d\n", i+1))))
		if err != nil {
			t.Fatal(err)
		}
		r := c.Request
		r.Domain = "other.example"
		h := change.HashOf(r.Marshal())
		row := store.Change{ID: h.ID(), Document: r.Marshal(), State: state, CreatedAt: b.clock.Now(), ExpiresAt: b.clock.Now().Add(time.Hour)}
		if state == store.ChangeExecuted {
			row.EndedAt, row.Required, row.Signed = b.clock.Now(), 2, []string{"ann", "bob"}
		}
		for _, o := range []operator{b.ann, b.bob} {
			row.Signatures = append(row.Signatures, store.ChangeSignature{Signer: change.SignerOf(o.public), Signature: o.sign(t, h), At: b.clock.Now()})
		}
		if err := b.store.AddChange(t.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.SignChange(t.Context(), h.ID(), b.cat.sign(t, h)); !errors.Is(err, appliance.ErrOver) {
			t.Errorf("%s: signed: %v", state, err)
		}
		rules, err := b.Policy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.runUntil("a look at what was taken", func() bool {
			row, err := b.store.Change(t.Context(), h.ID())
			return err == nil && row.State != store.ChangeTaken
		})
		after, err := b.Policy(t.Context())
		if err != nil || after.Version != rules.Version {
			t.Errorf("%s: policy %d was %d: %v", state, after.Version, rules.Version, err)
		}
		got, err := b.ChangeOf(t.Context(), h.ID())
		if err != nil || got.State != store.ChangeFailed || got.Ruling.Approved() || !strings.Contains(got.Reason, "other.example") {
			t.Errorf("%s: shown as %s, %q: %v", state, got.State, got.Reason, err)
		}
	}
}
