package appliance_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"io"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/backup"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/protocol"
)

// TestBackUpKeys: keys without copies are refused unless that is known, and those made
// once there is a backup key have them.
func TestBackUpKeys(t *testing.T) {
	b := newBench(t)
	before := b.tally()
	if _, err := b.BackUpKeys(t.Context(), appliance.BackUp{}); !errors.Is(err, appliance.ErrUncovered) {
		t.Errorf("%v, want ErrUncovered", err)
	}
	if b.tally() != before {
		t.Error("a backup that was refused left a record")
	}
	escrow, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if b.keys, err = keyring.Load(t.Context(), keyring.Backed{Token: b.token, Recipient: escrow.PublicKey()}, b.store, keyring.Pins{Root: b.keys.Root()}); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.step(keyring.Rotate, "mac")
	made, err := b.BackUpKeys(t.Context(), appliance.BackUp{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Items) != 1 || made.Items[0].Spec.Label != "mac@2" {
		t.Errorf("covered: %v", made.Items)
	}
	read, err := backup.Read(made.File)
	if err != nil || read.SHA256 != made.SHA256 || len(read.Rows) != len(b.keys.Keys()) || read.Point.Sequence != b.tally().Records-1 {
		t.Errorf("%d rows at record %d: %v", len(read.Rows), read.Point.Sequence, err)
	}
	if rec := b.lastRecord(); rec.Kind != store.KindKeys || rec.Words()["event"] != "backed up" {
		t.Errorf("last record: %v", rec.Words())
	}
}

// TestCopyStore: the copy is the file that its statement vouches for.
func TestCopyStore(t *testing.T) {
	b := newBench(t)
	b.enrol("alice")
	c, err := b.CopyStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(c)
	if err := errors.Join(err, c.Close()); err != nil || int64(len(raw)) != c.Size {
		t.Errorf("%d bytes of %d: %v", len(raw), c.Size, err)
	}
	keys, err := b.BackUpKeys(t.Context(), appliance.BackUp{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	read, err := backup.Read(keys.File)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read.Vouched(c.Statement); err != nil || got.SHA256 != c.SHA256 || got.Point.Sequence >= b.tally().Records {
		t.Errorf("%+v: %v", got, err)
	}
}

// TestForgotten: a store that came back from a copy may not know what was spent, so a
// challenge from before is dead; what it does know is answered as it was.
func TestForgotten(t *testing.T) {
	b := newBench(t)
	alice := b.enrol("alice")
	known, open := alice.challenge(door, nil), alice.challenge(door, nil)
	m3 := known.m3(protocol.Approve)
	if a := known.must(m3); a.p4.Result != protocol.ResultApproved {
		t.Fatalf("result %s", a.p4.Result)
	}
	b.clock.advance(time.Second)
	settings := b.keys.Settings()
	settings.RestoredAt = b.clock.Now()
	r := store.Recovered{At: b.clock.Now()}
	r.Settings = settings.Values()
	if err := b.store.Recover(t.Context(), r, store.NewRecord(store.KindStore, "restore", nil)); err != nil {
		t.Fatal(err)
	}
	if err := b.keys.Reload(t.Context(), b.store); err != nil {
		t.Fatal(err)
	}
	if a := open.must(open.m3(protocol.Approve)); a.p4.Reason != protocol.CodeExpired {
		t.Errorf("a challenge from before the restore: result %s, code %d, want 8", a.p4.Result, a.p4.Reason)
	}
	if a := known.must(m3); a.p4.Result != protocol.ResultApproved {
		t.Errorf("what was answered before: result %s, code %d", a.p4.Result, a.p4.Reason)
	}
	next := alice.challenge(door, nil)
	if a := next.must(next.m3(protocol.Approve)); a.p4.Result != protocol.ResultApproved {
		t.Errorf("a challenge from after it: code %d", a.p4.Reason)
	}
	b.step(keyring.Rotate, "root")
	b.step(keyring.Activate, "root")
	if b.keys.Settings().RestoredAt.IsZero() {
		t.Error("a rotation of the root forgot the restore")
	}
}
