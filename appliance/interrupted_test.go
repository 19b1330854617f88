package appliance_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/change"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/hsm/memory"
)

// resumed starts an appliance anew and waits until it is through with a request that
// was taken.
func (b *board) resumed(id change.ID) appliance.Change {
	b.Helper()
	b.restart()
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Appliance.Run(ctx)
	}()
	defer func() {
		stop()
		<-ended
	}()
	for tick := time.Tick(time.Millisecond); ; <-tick {
		c, err := b.ChangeOf(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		if c.State != store.ChangeTaken {
			return c
		}
	}
}

// taken stores a request as an appliance that was killed after it was taken leaves it.
func (b *board) taken(ask appliance.Ask) appliance.Change {
	b.Helper()
	c, err := b.Preview(b.Context(), ask)
	if err != nil {
		b.Fatal(err)
	}
	row := store.Change{ID: c.Hash.ID(), Document: c.Document, State: store.ChangeTaken, CreatedAt: b.clock.Now(), ExpiresAt: b.clock.Now().Add(time.Hour)}
	row.Required, row.Signed = 2, []string{"ann", "bob"}
	for _, o := range []operator{b.ann, b.bob} {
		row.Signatures = append(row.Signatures, store.ChangeSignature{Signer: change.SignerOf(o.public), Signature: o.sign(b.T, c.Hash), At: b.clock.Now()})
	}
	if err := b.store.AddChange(b.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
		b.Fatal(err)
	}
	return c
}

// TestInterrupted: killed before the change was made, and after.
func TestInterrupted(t *testing.T) {
	b := newBoard(t, twoOfThree)
	before := b.invitations()
	c := b.taken(invitation("door"))
	if c = b.resumed(c.Hash.ID()); c.State != store.ChangeExecuted || b.invitations() != before+1 {
		t.Fatalf("killed before: %s, %d invitations more", c.State, b.invitations()-before)
	}
	ask := invitation("gate-2")
	c = b.taken(ask)
	code := [32]byte(ask.Parameters.Bytes("code_sha256"))
	made := store.Invitation{Code: code, Kind: store.KindDevice, Name: "gate-2", Display: "x", Floor: 1, CreatedAt: b.clock.Now(), ExpiresAt: b.clock.Now().Add(time.Hour), Change: c.Hash.ID()}
	if err := b.store.Invite(t.Context(), made, audit.NewRecord(audit.KindDevices, "device", nil)); err != nil {
		t.Fatal(err)
	}
	if c = b.resumed(c.Hash.ID()); c.State != store.ChangeExecuted || b.invitations() != before+2 {
		t.Fatalf("killed after: %s, %d invitations more", c.State, b.invitations()-before)
	}
	add := b.taken(appliance.AskAdmin("dora", newOperator(t, "dora").public))
	if add = b.resumed(add.Hash.ID()); add.State != store.ChangeExecuted {
		t.Errorf("adding an administrator: %s, %s", add.State, add.Reason)
	}
	rules := b.taken(appliance.AskPolicy(quorumPolicy("[quorum]\n")))
	if rules = b.resumed(rules.Hash.ID()); rules.State != store.ChangeExecuted {
		t.Errorf("applying a policy: %s, %s", rules.State, rules.Reason)
	}
}

// erasable is a token whose keys can be destroyed, and that can be away for that.
type erasable struct {
	*memory.Token
	away bool
	gone map[hsm.KeyID]int
}

func (e *erasable) Destroy(_ context.Context, id hsm.KeyID) error {
	if e.away {
		return hsm.ErrUnavailable
	}
	e.gone[id]++
	return nil
}

func (e *erasable) Keys(ctx context.Context) ([]hsm.Key, error) {
	all, err := e.Token.Keys(ctx)
	return slices.DeleteFunc(all, func(k hsm.Key) bool { return e.gone[k.ID] > 0 }), err
}

// TestDestroy: a key leaves the token once, after the second administrator, also where
// the token was away in between.
func TestDestroy(t *testing.T) {
	b := newBoard(t, twoOfThree)
	token := &erasable{Token: b.token, gone: map[hsm.KeyID]int{}}
	keys, err := keyuse.Load(t.Context(), token, b.store, keyuse.Pins{Root: b.keys.Root()})
	if err != nil {
		t.Fatal(err)
	}
	b.keys = keys
	b.restart()
	for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate, keyplan.Retire} {
		if _, err := b.ChangeKey(t.Context(), keyplan.Step{Verb: verb, Name: "decision", Early: verb == keyplan.Retire}); err != nil {
			t.Fatal(err)
		}
	}
	destroy := keyplan.Step{Verb: keyplan.Destroy, Name: "decision", Version: 1}
	_, err = b.ChangeKey(t.Context(), destroy)
	var waiting *appliance.Waiting
	if !errors.As(err, &waiting) || !errors.Is(err, appliance.ErrQuorum) || waiting.Ruling.MissingAdministrators() != 1 {
		t.Fatalf("one of two: %v", err)
	}
	if len(token.gone) != 0 {
		t.Fatal("the key is gone before the quorum was there")
	}
	token.away = true
	if _, err := b.SignChange(t.Context(), waiting.Hash.ID(), b.cat.sign(t, waiting.Hash)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("token away: %v", err)
	}
	token.away = false
	if c := b.resumed(waiting.Hash.ID()); c.State != store.ChangeExecuted {
		t.Fatalf("token back: %s, %s", c.State, c.Reason)
	}
	for _, v := range b.Keys() {
		if v.Name == "decision" && v.Version == 1 && (v.State != keyring.Destroyed || v.OnToken || token.gone[v.ID] != 1) {
			t.Errorf("decision@1 is %s, on the token %t, destroyed %d times", v.State, v.OnToken, token.gone[v.ID])
		}
	}
	if views, err := b.ChangeKey(t.Context(), destroy); err != nil || views[0].State != keyring.Destroyed {
		t.Errorf("again: %v, %v", views, err)
	}
}

// TestMACRotation: administrators and requests under way outlive a rotation of mac.
func TestAdminsOutliveMAC(t *testing.T) {
	b := newBoard(t, twoOfThree)
	c := b.waits(invitation("door"))
	for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate} {
		if _, err := b.ChangeKey(t.Context(), keyplan.Step{Verb: verb, Name: keyring.MAC}); err != nil {
			t.Fatal(err)
		}
	}
	retire := keyplan.Step{Verb: keyplan.Retire, Name: keyring.MAC, Version: 1, Early: true}
	if _, err := b.ChangeKey(t.Context(), retire); !errors.Is(err, keyplan.ErrEarly) {
		t.Errorf("retired while administrators are under it: %v", err)
	}
	if c = b.signed(c, b.ann.sign(t, c.Hash)); c.State != store.ChangeExecuted {
		t.Errorf("request is %s, signed by %v", c.State, c.Signed)
	}
	all, err := b.Admins(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%d administrators: %v", len(all), err)
	}
}
