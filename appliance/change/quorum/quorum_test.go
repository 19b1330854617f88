package quorum_test

import (
	"errors"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/change/quorum"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
)

// taken stores a request of a board that is taken, with these signatures and this claim of who
// signed, and returns the record that it made.
func taken(b *appliancetest.Board, required int, claimed []string, signers ...appliancetest.Operator) quorum.Record {
	b.Helper()
	c, err := b.Requests.Preview(b.Context(), appliancetest.Invitation("door"))
	if err != nil {
		b.Fatal(err)
	}
	row := store.Change{
		ID: c.Hash.ID(), Document: c.Document, State: store.ChangeTaken, Required: required, Signed: claimed,
		CreatedAt: b.Clock.Now(), ExpiresAt: b.Clock.Now().Add(time.Hour),
	}
	for _, o := range signers {
		row.Signatures = append(row.Signatures, store.ChangeSignature{Signer: change.SignerOf(o.Public), Signature: o.Sign(b.T, c.Hash), At: b.Clock.Now()})
	}
	if err := b.Store.AddChange(b.Context(), row, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
		b.Fatal(err)
	}
	return quorum.Record{What: "door", Change: c.Hash.ID(), Kinds: []policy.Kind{policy.DeviceInvite}, Fits: func(change.Parameters) bool { return true }}
}

// TestVerifyCounts: a record stands only with as many signatures as were required, by administrators
// who are named as signers and each count once.
func TestVerifyCounts(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	both := []string{"ann", "bob"}
	for name, c := range map[string]struct {
		record quorum.Record
		good   bool
	}{
		"two of two":           {taken(b, 2, both, b.Ann, b.Bob), true},
		"one of two":           {taken(b, 2, both, b.Ann), false},
		"none of two":          {taken(b, 2, both), false},
		"two of three":         {taken(b, 3, both, b.Ann, b.Bob), false},
		"two, and one claimed": {taken(b, 2, both[:1], b.Ann, b.Bob), false},
		"three of two":         {taken(b, 2, append(both, "cat"), b.Ann, b.Bob, b.Cat), true},
		"none of none":         {taken(b, 0, nil), false},
		"a stranger":           {taken(b, 2, both, b.Ann, appliancetest.NewOperator(t, "bob")), false},
	} {
		before := b.Seals.Forged()
		err := b.Quorum.Verify(t.Context(), c.record)
		if c.good && err != nil || !c.good && !errors.Is(err, store.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
		if alarms := b.Seals.Forged() - before; (alarms == 0) != c.good {
			t.Errorf("%s: %d alarms", name, alarms)
		}
	}
}

// TestVerifyFits: a record stands only on the request that asked for it.
func TestVerifyFits(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	good := taken(b, 2, []string{"ann", "bob"}, b.Ann, b.Bob)
	for name, change := range map[string]func(r *quorum.Record){
		"of another kind":   func(r *quorum.Record) { r.Kinds = []policy.Kind{policy.PolicyApply} },
		"of other wishes":   func(r *quorum.Record) { r.Fits = func(change.Parameters) bool { return false } },
		"without a request": func(r *quorum.Record) { r.Change = change.ID{} },
		"not there":         func(r *quorum.Record) { r.Change[0] ^= 1 },
	} {
		r := good
		change(&r)
		if err := b.Quorum.Verify(t.Context(), r); !errors.Is(err, store.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Quorum.Verify(t.Context(), quorum.Record{Free: true}); err != nil {
		t.Errorf("needs no request: %v", err)
	}
	open := b.Waits(appliancetest.Invitation("gate-3"))
	r := good
	r.Change = open.Hash.ID()
	if err := b.Quorum.Verify(t.Context(), r); !errors.Is(err, store.ErrForged) {
		t.Errorf("of a request that is open: %v", err)
	}
}

// TestVerifyAgain: a request that was found good is counted again after it has changed.
func TestVerifyAgain(t *testing.T) {
	b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
	r := taken(b, 2, []string{"ann", "bob"}, b.Ann, b.Bob)
	for range 2 {
		if err := b.Quorum.Verify(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	end := store.ChangeEnd{ID: r.Change, From: store.ChangeTaken, To: store.ChangeExecuted, Required: 3, Signed: []string{"ann", "bob"}, At: b.Clock.Now()}
	if err := b.Store.EndChange(t.Context(), end, audit.NewRecord(audit.KindChanges, "change", nil)); err != nil {
		t.Fatal(err)
	}
	if err := b.Quorum.Verify(t.Context(), r); !errors.Is(err, store.ErrForged) {
		t.Errorf("three were required in the end: %v", err)
	}
}
