package requests_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/parties"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// TestQuorum: the admin socket and one of three administrators make a quorum. Another signature
// comes too late.
func TestQuorum(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	before := b.Invitations()
	c := b.Waits(appliancetest.Invitation("door"))
	if !slices.Equal(c.Signed, []string{"local"}) || !slices.Equal(c.Missing, []string{"ann", "bob", "cat"}) {
		t.Errorf("signed by %v, missing %v", c.Signed, c.Missing)
	}
	if c = b.Signed(c, nil); c.State != store.ChangeOpen || c.Ruling.Signed() != 1 {
		t.Errorf("local twice counts %d", c.Ruling.Signed())
	}
	if b.Invitations() != before {
		t.Fatal("a device was invited before the quorum was there")
	}
	if c = b.Signed(c, b.Bob.Sign(t, c.Hash)); c.State != store.ChangeExecuted || b.Invitations() != before+1 {
		t.Fatalf("change is %s, %d invitations more", c.State, b.Invitations()-before)
	}
	rec := b.LastRecord()
	words := rec.Words()
	if rec.Kind != audit.KindChanges || words["event"] != "executed" || len(words["signatures"].([]any)) != 2 {
		t.Errorf("transcript is %v", words)
	}
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), b.Ann.Sign(t, c.Hash)); !errors.Is(err, requests.ErrOver) {
		t.Errorf("after execution: %v", err)
	}
}

// TestKeysOnly: with local = false the socket can ask, but does not count.
func TestKeysOnly(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree+"local = false\n")
	door := appliancetest.Invitation("door")
	c, err := b.Requests.Ask(t.Context(), door)
	if err != nil || c.Ruling.MissingAdministrators() != 2 {
		t.Fatalf("%d missing: %v", c.Ruling.MissingAdministrators(), err)
	}
	if again, err := b.Requests.Ask(t.Context(), door); err != nil || again.Hash != c.Hash || again.State != store.ChangeOpen {
		t.Errorf("asked again: %s is %s, not %s: %v", again.Hash.ID(), again.State, c.Hash.ID(), err)
	}
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), nil); !errors.Is(err, requests.ErrSigner) {
		t.Errorf("the socket signs: %v", err)
	}
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeOpen || c.Ruling.MissingAdministrators() != 1 {
		t.Fatalf("one of three: %s, %d missing", c.State, c.Ruling.MissingAdministrators())
	}
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeOpen || c.Ruling.Signed() != 1 {
		t.Fatalf("one twice: %s, counts %d", c.State, c.Ruling.Signed())
	}
	if c = b.Signed(c, b.Cat.Sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Fatalf("two of three: %s", c.State)
	}
}

// TestAttacks: no invalid signature counts, and the request still waits for one.
func TestAttacks(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	stranger := appliancetest.NewOperator(t, "eve")
	suspended := b.Cat
	if _, err := b.Requests.SuspendAdmin(t.Context(), suspended.Name); err != nil {
		t.Fatal(err)
	}
	other := b.Waits(appliancetest.Invitation("other"))
	c := b.Waits(appliancetest.Invitation("door"))
	good := b.Ann.Sign(t, c.Hash)
	altered := bytes.Clone(c.Document)
	altered[len(altered)-1] ^= 1
	asAnn, err := change.ParseSignature(stranger.Sign(t, c.Hash))
	if err != nil {
		t.Fatal(err)
	}
	asAnn.Signer = change.SignerOf(b.Ann.Public)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	wrongAAD := signedAs(b, "OA1 keycert v1", b.Ann, c.Hash)
	for name, attack := range map[string]struct {
		raw  []byte
		want error
	}{
		"a byte altered in the signature": {flipped, change.ErrSignature},
		"a byte altered in the request":   {b.Ann.Sign(t, change.HashOf(altered)), change.ErrSignature},
		"another request's":               {b.Ann.Sign(t, other.Hash), change.ErrSignature},
		"another external_aad":            {wrongAAD, change.ErrSignature},
		"a stranger's":                    {stranger.Sign(t, c.Hash), requests.ErrSigner},
		"a stranger's in ann's name":      {asAnn.Marshal(), change.ErrSignature},
		"a suspended administrator's":     {suspended.Sign(t, c.Hash), requests.ErrSigner},
		"nothing":                         {[]byte{}, change.ErrSignature},
		"trailing byte":                   {append(bytes.Clone(good), 0), change.ErrSignature},
	} {
		if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), attack.raw); !errors.Is(err, attack.want) {
			t.Errorf("%s: %v, want %v", name, err, attack.want)
		}
	}
	if c, err = b.Requests.Get(t.Context(), c.Hash.ID()); err != nil || c.State != store.ChangeOpen || c.Ruling.Signed() != 1 {
		t.Fatalf("request is %s, %d signed: %v", c.State, c.Ruling.Signed(), err)
	}
	if _, err := b.Requests.Sign(t.Context(), change.ID{1}, good); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an id that is not there: %v", err)
	}
	b.Clock.Advance(change.DefaultLife)
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), good); !errors.Is(err, requests.ErrOver) {
		t.Errorf("expired: %v", err)
	}
	if rec := b.LastRecord().Words(); rec["event"] != "expired" {
		t.Errorf("last record is %v", rec)
	}
}

// signedAs returns a signature with an external_aad of another use.
func signedAs(b *appliancetest.Board, aad string, o appliancetest.Operator, h change.Hash) []byte {
	b.Helper()
	s, err := change.Sign(b.Context(), aadSigner{o.Key, protocol.SigStructure(aad, h[:])}, o.Public, h)
	if !errors.Is(err, change.ErrSignature) {
		b.Fatalf("signing under another external_aad: %+v, %v", s, err)
	}
	rs, err := o.Key.SignDigest(b.Context(), digestOf(protocol.SigStructure(aad, h[:])))
	if err != nil {
		b.Fatal(err)
	}
	return change.Signature{Signer: change.SignerOf(o.Public), RS: [64]byte(rs)}.Marshal()
}

// aadSigner signs other bytes than it is given.
type aadSigner struct {
	change.FileKey
	structure []byte
}

func (s aadSigner) SignDigest(ctx context.Context, _ []byte) ([]byte, error) {
	return s.FileKey.SignDigest(ctx, digestOf(s.structure))
}

func digestOf(b []byte) []byte { sum := change.HashOf(b); return sum[:] }

// TestSignerLeaves: a signature no longer counts once its administrator is suspended or revoked.
func TestSignerLeaves(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"device.invite\" = 3\n")
	c, err := b.Requests.Ask(t.Context(), appliancetest.Invitation("door"))
	if err != nil {
		t.Fatal(err)
	}
	if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.Ruling.Signed() != 2 {
		t.Fatalf("%d signed", c.Ruling.Signed())
	}
	if _, err := b.Requests.SuspendAdmin(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	if c = b.Signed(c, b.Bob.Sign(t, c.Hash)); c.State != store.ChangeOpen || c.Ruling.Signed() != 2 {
		t.Fatalf("with a suspended signer: %s, %d signed", c.State, c.Ruling.Signed())
	}
	resume, err := b.Requests.DraftResume(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	b.Executes(resume)
	if c = b.Signed(c, nil); c.State != store.ChangeExecuted {
		t.Fatalf("resumed: %s, %d signed", c.State, c.Ruling.Signed())
	}
}

// TestStale: a request from before a change of the policy or the administrators is refused.
func TestStale(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	dora := appliancetest.NewOperator(t, "dora")
	add := b.Waits(requests.DraftAdmin("dora", dora.Public))
	if _, err := b.Requests.SuspendAdmin(t.Context(), "cat"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Requests.Sign(t.Context(), add.Hash.ID(), b.Ann.Sign(t, add.Hash)); !errors.Is(err, requests.ErrOver) {
		t.Errorf("after another change of the administrators: %v", err)
	}
	invite, rules := b.Waits(appliancetest.Invitation("door")), b.Waits(rules.Draft(appliancetest.QuorumPolicy("[quorum]\n")))
	if rules = b.Signed(rules, b.Ann.Sign(t, rules.Hash)); rules.State != store.ChangeExecuted {
		t.Fatalf("policy is %s", rules.State)
	}
	if _, err := b.Requests.Sign(t.Context(), invite.Hash.ID(), b.Ann.Sign(t, invite.Hash)); !errors.Is(err, requests.ErrOver) {
		t.Errorf("after a change of the policy: %v", err)
	}
	if c, err := b.Requests.Get(t.Context(), invite.Hash.ID()); err != nil || c.State != store.ChangeFailed {
		t.Errorf("stale request is %s: %v", c.State, err)
	}
	b.Executes(appliancetest.Invitation("door")) // under the new policy
}

func TestWithdrawn(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	ask := appliancetest.Invitation("door")
	c := b.Waits(ask)
	if again := b.Waits(ask); again.Hash != c.Hash {
		t.Error("the same request is there twice")
	}
	gone, err := b.Requests.Withdraw(t.Context(), c.Hash.ID())
	if err != nil || gone.State != store.ChangeWithdrawn {
		t.Fatalf("%s: %v", gone.State, err)
	}
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), b.Ann.Sign(t, c.Hash)); !errors.Is(err, requests.ErrOver) {
		t.Errorf("after withdrawal: %v", err)
	}
	if again := b.Waits(ask); again.Hash == c.Hash {
		t.Error("the nonce is the same again")
	}
}

func TestPolicyLocksEverybodyOut(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	if _, err := b.Requests.Ask(t.Context(), rules.Draft(appliancetest.QuorumPolicy("[quorum]\nadmin.add = 5\npolicy.apply = 5\n"))); !errors.Is(err, parties.ErrInput) {
		t.Errorf("a policy that locks everybody out: %v", err)
	}
}

// TestWordAgain: a word of the admin socket under a key that was given up does not count, and is
// replaced when it is given again by signing or asking.
func TestWordAgain(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	for _, asking := range []bool{false, true} {
		ask := appliancetest.Invitation("door")
		c, err := b.Requests.Preview(t.Context(), ask)
		if err != nil {
			t.Fatal(err)
		}
		row := store.Change{
			ID: c.Hash.ID(), Document: c.Document, State: store.ChangeOpen, CreatedAt: b.Clock.Now(), ExpiresAt: b.Clock.Now().Add(time.Hour),
			Signatures: []store.ChangeSignature{{Signature: make([]byte, 32), At: b.Clock.Now()}},
		}
		if err := b.Store.AddChange(t.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
			t.Fatal(err)
		}
		if asking {
			again := b.Waits(ask)
			if again.Hash != c.Hash {
				t.Error("the same request is there twice")
			}
			c = again
		} else {
			c = b.Signed(c, nil)
		}
		if !slices.Equal(c.Signed, []string{"local"}) {
			t.Errorf("signed by %v", c.Signed)
		}
	}
}

// TestLifeBounds: a request is good for at most MaxLife.
func TestLifeBounds(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	for life, good := range map[time.Duration]bool{
		time.Second: true, change.MaxLife: true, time.Second - 1: false, change.MaxLife + time.Second: false, -time.Second: false,
	} {
		ask := appliancetest.Invitation("door")
		ask.Life = life
		if _, err := b.Requests.Ask(t.Context(), ask); (err == nil) != good || err != nil && !errors.Is(err, parties.ErrInput) {
			t.Errorf("for %v: %v", life, err)
		}
	}
}

// TestSuspendedTwice: suspending an administrator again changes and records nothing, and an unknown name is
// an error.
func TestSuspendedTwice(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	first, err := b.Requests.SuspendAdmin(t.Context(), "cat")
	if err != nil || first.Status != store.Suspended {
		t.Fatalf("cat is %s: %v", first.Status, err)
	}
	before := b.Tally().Records
	again, err := b.Requests.SuspendAdmin(t.Context(), "cat")
	if err != nil || again.Version != first.Version || b.Tally().Records != before {
		t.Errorf("version %d after %d, %d records more: %v", again.Version, first.Version, b.Tally().Records-before, err)
	}
	if _, err := b.Requests.SuspendAdmin(t.Context(), "nobody"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an unknown name: %v", err)
	}
}

// TestRowOfAnother: a row that is not of its document is no request, even if its seal fits.
func TestRowOfAnother(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	c, err := b.Requests.Preview(t.Context(), appliancetest.Invitation("door"))
	if err != nil {
		t.Fatal(err)
	}
	other := c.Hash.ID()
	other[0] ^= 1
	for name, row := range map[string]store.Change{
		"another id":  {ID: other, Document: c.Document},
		"no document": {ID: change.HashOf([]byte("nothing")).ID(), Document: []byte("nothing")},
	} {
		row.State, row.CreatedAt, row.ExpiresAt = store.ChangeOpen, b.Clock.Now(), b.Clock.Now().Add(time.Hour)
		if err := b.Store.AddChange(t.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Requests.Get(t.Context(), row.ID); !errors.Is(err, store.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Requests.Sign(t.Context(), row.ID, b.Ann.Sign(t, c.Hash)); !errors.Is(err, store.ErrForged) {
			t.Errorf("%s, signed: %v", name, err)
		}
	}
}

// TestForgedRows: a writer of the database can add no vote.
func TestForgedRows(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	c := b.Waits(appliancetest.Invitation("door"))
	eve := appliancetest.NewOperator(t, "eve")
	id := change.SignerOf(eve.Public)
	b.Tamper(1, `INSERT INTO admin (id, name, public, status, version, created_us, seal) SELECT ?, 'eve', ?, 1, 1, created_us, seal FROM admin WHERE name = 'ann'`,
		id[:], eve.Public[:])
	alarms := b.Seals.Forged()
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), eve.Sign(t, c.Hash)); err == nil || b.Seals.Forged() == alarms {
		t.Errorf("a forged administrator: %v", err)
	}

	b = appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	c = b.Waits(appliancetest.Invitation("door"))
	r := c.Request
	r.Nonce[0] ^= 1
	document := r.Marshal()
	forged := change.HashOf(document).ID()
	b.Tamper(1, `INSERT INTO change (id, document, state, reason, created_us, expires_us, required, signed, seal)
		SELECT ?, ?, 'taken', '', created_us, expires_us, 1, signed, seal FROM change WHERE state = 'open'`, forged[:], document)
	before, alarms := b.Invitations(), b.Seals.Forged()
	all, err := b.Requests.List(t.Context())
	listed := slices.ContainsFunc(all, func(c requests.Change) bool { return c.Hash.ID() == forged })
	if err != nil || listed || b.Seals.Forged() == alarms {
		t.Errorf("a forged request among %d: %v, %v", len(all), listed, err)
	}
	if b.Invitations() != before {
		t.Error("a forged request was made")
	}
}

// TestAnotherAppliance: a request that the same administrators signed for another appliance is
// not carried out, not continued, and shown as failed.
func TestAnotherAppliance(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	for i, state := range []store.ChangeState{store.ChangeOpen, store.ChangeTaken, store.ChangeExecuted} {
		c, err := b.Requests.Preview(t.Context(), rules.Draft(appliancetest.QuorumPolicy(fmt.Sprintf("[quorum]\n\"key.backup\" = %d\n", i+1))))
		if err != nil {
			t.Fatal(err)
		}
		r := c.Request
		r.Domain = "other.example"
		h := change.HashOf(r.Marshal())
		row := store.Change{ID: h.ID(), Document: r.Marshal(), State: state, CreatedAt: b.Clock.Now(), ExpiresAt: b.Clock.Now().Add(time.Hour)}
		if state == store.ChangeExecuted {
			row.EndedAt, row.Required, row.Signed = b.Clock.Now(), 2, []string{"ann", "bob"}
		}
		for _, o := range []appliancetest.Operator{b.Ann, b.Bob} {
			row.Signatures = append(row.Signatures, store.ChangeSignature{Signer: change.SignerOf(o.Public), Signature: o.Sign(t, h), At: b.Clock.Now()})
		}
		if err := b.Store.AddChange(t.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Requests.Sign(t.Context(), h.ID(), b.Cat.Sign(t, h)); !errors.Is(err, requests.ErrOver) {
			t.Errorf("%s: signed: %v", state, err)
		}
		rules, err := b.Rules.Policy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.RunUntil("a look at what was taken", func() bool {
			row, err := b.Store.Change(t.Context(), h.ID())
			return err == nil && row.State != store.ChangeTaken
		})
		after, err := b.Rules.Policy(t.Context())
		if err != nil || after.Version != rules.Version {
			t.Errorf("%s: policy %d was %d: %v", state, after.Version, rules.Version, err)
		}
		got, err := b.Requests.Get(t.Context(), h.ID())
		if err != nil || got.State != store.ChangeFailed || got.Ruling.Approved() || !strings.Contains(got.Reason, "other.example") {
			t.Errorf("%s: shown as %s, %q: %v", state, got.State, got.Reason, err)
		}
	}
}
