package recovery_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change/requests"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/protocol"
)

// TestBackUpKeys: a backup without copies of all keys is refused unless it is partial. Keys that
// are made while there is a backup key have copies.
func TestBackUpKeys(t *testing.T) {
	b := appliancetest.New(t)
	before := b.Tally()
	if _, err := backUp(b, recovery.BackUp{}); !errors.Is(err, recovery.ErrUncovered) {
		t.Errorf("%v, want ErrUncovered", err)
	}
	if b.Tally() != before {
		t.Error("a backup that was refused left a record")
	}
	escrow, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if b.Keyring, err = keyuse.Load(t.Context(), keylife.Backed{Token: b.Token, Recipient: escrow.PublicKey()}, b.Store, keyuse.Pins{Root: b.Keyring.Root()}); err != nil {
		t.Fatal(err)
	}
	b.Restart()
	b.Step(keyplan.Rotate, "mac")
	made, err := backUp(b, recovery.BackUp{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Items) != 1 || made.Items[0].Spec.Label != "mac@2" {
		t.Errorf("covered: %v", made.Items)
	}
	read, err := backup.Read(made.File, backup.Known{Root: b.Keyring.Root()})
	if err != nil || read.SHA256 != made.SHA256 || len(read.Rows) != len(b.Keyring.Ring().Keys()) || read.Point.Sequence != b.Tally().Records-2 { // made, and spent
		t.Errorf("%d rows at record %d: %v", len(read.Rows), read.Point.Sequence, err)
	}
	if rec := b.LastRecord(); rec.Kind != audit.KindChanges || rec.Words()["event"] != "executed" {
		t.Errorf("last record: %v", rec.Words())
	}
}

// TestCopyStore: the copy matches its statement.
func TestCopyStore(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolPhone("alice")
	c := copyStore(b)
	if int64(len(c.raw)) != c.Size || sha256.Sum256(c.raw) != c.SHA256 {
		t.Errorf("%d bytes of %d", len(c.raw), c.Size)
	}
	keys, err := backUp(b, recovery.BackUp{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	read, err := backup.Read(keys.File, backup.Known{Root: b.Keyring.Root()})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read.Vouched(c.Statement); err != nil || got.SHA256 != c.SHA256 || got.Point.Sequence >= b.Tally().Records {
		t.Errorf("%+v: %v", got, err)
	}
}

// during is a store in which something happens while it is copied for the first time.
type during struct {
	store.Store
	happens func()
	copies  int
}

func (d *during) Copy(ctx context.Context) (store.Copy, error) {
	c, err := d.Store.Copy(ctx)
	if d.copies++; d.copies == 1 {
		d.happens()
	}
	return c, err
}

// TestStepDuringCopy: a key can be suspended while the database is copied, and the copy that is sent has that.
func TestStepDuringCopy(t *testing.T) {
	b := appliancetest.New(t)
	b.Step(keyplan.Rotate, "decision")
	b.Step(keyplan.Activate, "decision")
	b.Clock.Advance(time.Minute)
	suspended := make(chan error, 1)
	d := &during{Store: b.Store, happens: func() {
		go func() {
			_, err := b.TryStep(keyplan.Step{Verb: keyplan.Suspend}, "decision@1")
			suspended <- err
		}()
		select {
		case err := <-suspended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the suspension waits for the copy")
		}
	}}
	b.Recovery = recovery.New(recovery.Config{Store: d, Keyring: b.Keyring, Keys: b.Keys, Requests: b.Requests, Now: b.Clock.Now})
	before := b.Tally().Records
	if c := copyStore(b); d.copies != 2 || c.Point.Sequence <= before {
		t.Errorf("%d copies, the last of record %d, the suspension is after %d", d.copies, c.Point.Sequence, before)
	}
}

// comesBack restores the appliance on a copy of its store. clock is the host's time.
func comesBack(b *appliancetest.Bench, from copied, clock time.Time) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "copy.db")
	if err := os.WriteFile(path, from.raw, 0o600); err != nil {
		b.Fatal(err)
	}
	s, err := sqlite.Open(b.Context(), sqlite.Config{Path: path, Logger: hclog.NewNullLogger()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	if err := keyuse.Unseal(b.Context(), b.Token, s, b.Seals, keyuse.Pins{Root: b.Keyring.Root()}); err != nil {
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
	if b.Keyring, err = keyuse.Load(b.Context(), b.Token, s, keyuse.Pins{Root: b.Keyring.Root()}); err != nil {
		b.Fatal(err)
	}
	b.Store = s
	b.Restart()
}

// copied is a copy of the database, read to its end.
type copied struct {
	recovery.StoreCopy
	raw []byte
}

func copyStore(b *appliancetest.Bench) (c copied) {
	b.Helper()
	err := b.Recovery.CopyStore(b.Context(), 0, func(made recovery.StoreCopy) (err error) {
		c.StoreCopy = made
		c.raw, err = io.ReadAll(made)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func backUp(b *appliancetest.Bench, ask recovery.BackUp) (made recovery.KeyBackup, err error) {
	err = b.Recovery.BackUpKeys(b.Context(), ask, func(b recovery.KeyBackup) error {
		made = b
		return nil
	})
	return made, err
}

// TestForgotten: a store that was restored from a copy does not know the serials spent since. Every
// handle from before the restore is dead, even if the host's clock is behind.
func TestForgotten(t *testing.T) {
	for name, behind := range map[string]time.Duration{"clock right": 0, "clock behind": time.Minute} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.New(t)
			alice := b.EnrolPhone("alice")
			answered, open := alice.Challenge(appliancetest.Door, nil), alice.Challenge(appliancetest.Door, nil)
			copied := copyStore(b)
			m3 := answered.M3(protocol.Approve)
			if a := answered.Must(m3); a.P4.Result != protocol.ResultApproved {
				t.Fatalf("result %s", a.P4.Result)
			}
			b.Clock.Advance(time.Second)
			comesBack(b, copied, b.Clock.Now().Add(-behind))
			for what, s := range map[string]func() (appliancetest.Answer, error){
				"that was answered": func() (appliancetest.Answer, error) { return answered.Send(m3) },
				"that was open":     func() (appliancetest.Answer, error) { return open.Send(open.M3(protocol.Approve)) },
			} {
				if a, err := s(); !errors.Is(err, protocol.CodeExpired) {
					t.Errorf("a challenge %s before the restore: result %s, %v; want code 8", what, a.P4.Result, err)
				}
			}
			next := alice.Challenge(appliancetest.Door, nil)
			if a := next.Must(next.M3(protocol.Approve)); a.P4.Result != protocol.ResultApproved {
				t.Errorf("a challenge from after it: code %d", a.P4.Reason)
			}
		})
	}
}

// TestHandleEpochStays: handles in transit survive a rotation of the root.
func TestHandleEpochStays(t *testing.T) {
	b := appliancetest.New(t)
	s := b.EnrolPhone("alice").Challenge(appliancetest.Door, nil)
	b.Step(keyplan.Rotate, "root")
	b.Step(keyplan.Activate, "root")
	if a := s.Must(s.M3(protocol.Approve)); a.P4.Result != protocol.ResultApproved {
		t.Errorf("result %s, code %d", a.P4.Result, a.P4.Reason)
	}
}

// TestForgedVote: a request that an attacker marks as executed, or as requiring one signature,
// gives no backup.
func TestForgedVote(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"key.backup\" = 3\n")
	ask := recovery.BackUp{Partial: true}
	if _, err := backUp(b.Bench, ask); !errors.Is(err, requests.ErrQuorum) {
		t.Fatal(err)
	}
	b.Tamper(1, `UPDATE change SET state = 'taken', required = 1, signed = '["local"]' WHERE state = 'open'`)
	b.Forgeries(func() {
		if _, err := backUp(b.Bench, ask); err == nil {
			t.Error("a backup that nobody voted for")
		}
	})
}

// TestKeep: a backup that was made is kept or not once, by the word of the peer that got it. No other file is.
func TestKeep(t *testing.T) {
	b := appliancetest.New(t)
	if err := b.Recovery.Keep(t.Context(), recovery.Kept{}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a backup that was never made: %v", err)
	}
	keys, err := backUp(b, recovery.BackUp{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	database := copyStore(b)
	for _, tc := range []struct {
		subject, event string
		kept           recovery.Kept
	}{
		{"key/backup", "kept", recovery.Kept{SHA256: keys.SHA256}},
		{"store/backup", "not kept", recovery.Kept{SHA256: database.SHA256, Problem: "no space left on device"}},
	} {
		if err := b.Recovery.Keep(t.Context(), tc.kept); err != nil {
			t.Fatal(err)
		}
		rec := b.LastRecord()
		words := rec.Words()
		problem, _ := words["problem"].(string)
		if rec.Subject != tc.subject || words["event"] != tc.event || problem != tc.kept.Problem ||
			words["sha256"] != hex.EncodeToString(tc.kept.SHA256[:]) {
			t.Errorf("%s: %v", rec.Subject, words)
		}
		if err := b.Recovery.Keep(t.Context(), tc.kept); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: twice: %v", tc.subject, err)
		}
	}
}

// TestApprovalOfABackup: a backup that could not be sent leaves its approval, one that was sent spends
// it. Each that was made is in the audit.
func TestApprovalOfABackup(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"key.backup\" = 2\n\"store.backup\" = 2\n")
	broken := errors.New("the connection broke")
	for name, make := range map[string]func(sent error) error{
		"keys": func(sent error) error {
			return b.Recovery.BackUpKeys(t.Context(), recovery.BackUp{Partial: true}, func(recovery.KeyBackup) error { return sent })
		},
		"store": func(sent error) error {
			return b.Recovery.CopyStore(t.Context(), 0, func(recovery.StoreCopy) error { return sent })
		},
	} {
		var w *requests.Waiting
		if err := make(nil); !errors.As(err, &w) {
			t.Fatalf("%s: %v", name, err)
		}
		if c := b.Signed(w.Change, b.Ann.Sign(t, w.Hash)); !c.Granted {
			t.Fatalf("%s: %s", name, c.State)
		}
		made := b.Tally().Records
		if err := make(broken); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
		if n, rec := b.Tally().Records-made, b.LastRecord(); n != 2 || rec.Words()["event"] != "not kept" ||
			!strings.Contains(fmt.Sprint(rec.Words()["problem"]), broken.Error()) {
			t.Errorf("%s: a backup that was made and not sent left %d records, the last is %v", name, n, rec.Words())
		}
		if err := make(nil); err != nil {
			t.Errorf("%s: the approval is gone: %v", name, err)
		}
		if err := make(nil); !errors.As(err, &w) {
			t.Errorf("%s: another backup: %v", name, err)
		}
	}
}
