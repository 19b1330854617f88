package appliance_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
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
	if b.keys, err = keyuse.Load(t.Context(), keylife.Backed{Token: b.token, Recipient: escrow.PublicKey()}, b.store, keyuse.Pins{Root: b.keys.Root()}); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.step(keyplan.Rotate, "mac")
	made, err := b.BackUpKeys(t.Context(), appliance.BackUp{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Items) != 1 || made.Items[0].Spec.Label != "mac@2" {
		t.Errorf("covered: %v", made.Items)
	}
	read, err := backup.Read(made.File, backup.Known{Root: b.keys.Root()})
	if err != nil || read.SHA256 != made.SHA256 || len(read.Rows) != len(b.keys.Ring().Keys()) || read.Point.Sequence != b.tally().Records-1 {
		t.Errorf("%d rows at record %d: %v", len(read.Rows), read.Point.Sequence, err)
	}
	if rec := b.lastRecord(); rec.Kind != audit.KindKeys || rec.Words()["event"] != "backed up" {
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
	read, err := backup.Read(keys.File, backup.Known{Root: b.keys.Root()})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read.Vouched(c.Statement); err != nil || got.SHA256 != c.SHA256 || got.Point.Sequence >= b.tally().Records {
		t.Errorf("%+v: %v", got, err)
	}
}

// comesBack is the appliance again, on a copy of its store that is restored at a time
// that the host's clock shows.
func (b *bench) comesBack(from appliance.StoreCopy, clock time.Time) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "copy.db")
	raw, err := io.ReadAll(from)
	if err := errors.Join(err, from.Close(), os.WriteFile(path, raw, 0o600)); err != nil {
		b.Fatal(err)
	}
	s, err := sqlite.Open(b.Context(), sqlite.Config{Path: path, Logger: hclog.NewNullLogger()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	if err := keyuse.Unseal(b.Context(), b.token, s, b.seals, keyuse.Pins{Root: b.keys.Root()}); err != nil {
		b.Fatal(err)
	}
	state, err := backup.StateOf(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	merged, err := backup.Merge(state, state)
	if err != nil {
		b.Fatal(err)
	}
	r := merged.Recovered("fresh", clock)
	r.Add, r.Update = nil, nil // the token is the same
	if err := s.Recover(b.Context(), r, audit.NewRecord(audit.KindStore, "restore", nil)); err != nil {
		b.Fatal(err)
	}
	if b.keys, err = keyuse.Load(b.Context(), b.token, s, keyuse.Pins{Root: b.keys.Root()}); err != nil {
		b.Fatal(err)
	}
	b.store = s
	b.restart()
}

func (b *bench) copyStore() appliance.StoreCopy {
	b.Helper()
	c, err := b.CopyStore(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// TestForgotten: a store that came back from a copy does not know what was spent since,
// so every handle from before it is dead, whatever the clock of the host says.
func TestForgotten(t *testing.T) {
	for name, behind := range map[string]time.Duration{"clock right": 0, "clock behind": time.Minute} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			alice := b.enrol("alice")
			answered, open := alice.challenge(door, nil), alice.challenge(door, nil)
			copied := b.copyStore()
			m3 := answered.m3(protocol.Approve)
			if a := answered.must(m3); a.p4.Result != protocol.ResultApproved {
				t.Fatalf("result %s", a.p4.Result)
			}
			b.clock.advance(time.Second)
			b.comesBack(copied, b.clock.Now().Add(-behind))
			for what, s := range map[string]func() (answer, error){
				"that was answered": func() (answer, error) { return answered.send(m3) },
				"that was open":     func() (answer, error) { return open.send(open.m3(protocol.Approve)) },
			} {
				if a, err := s(); !errors.Is(err, protocol.CodeExpired) {
					t.Errorf("a challenge %s before the restore: result %s, %v; want code 8", what, a.p4.Result, err)
				}
			}
			next := alice.challenge(door, nil)
			if a := next.must(next.m3(protocol.Approve)); a.p4.Result != protocol.ResultApproved {
				t.Errorf("a challenge from after it: code %d", a.p4.Reason)
			}
		})
	}
}

// A rotation of the root keeps the handles that are under way.
func TestHandleEpochStays(t *testing.T) {
	b := newBench(t)
	s := b.enrol("alice").challenge(door, nil)
	b.step(keyplan.Rotate, "root")
	b.step(keyplan.Activate, "root")
	if a := s.must(s.m3(protocol.Approve)); a.p4.Result != protocol.ResultApproved {
		t.Errorf("result %s, code %d", a.p4.Result, a.p4.Reason)
	}
}
