package recovery_test

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

	"countersign/appliance/appliancetest"
	"countersign/appliance/change/requests"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/protocol"
)

// TestBackUpKeys: a backup without copies of all keys is refused unless it is partial. Keys that
// are made while there is a backup key have copies.
func TestBackUpKeys(t *testing.T) {
	b := appliancetest.New(t)
	before := b.Tally()
	if _, err := b.Recovery.BackUpKeys(t.Context(), recovery.BackUp{}); !errors.Is(err, recovery.ErrUncovered) {
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
	made, err := b.Recovery.BackUpKeys(t.Context(), recovery.BackUp{Partial: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Items) != 1 || made.Items[0].Spec.Label != "mac@2" {
		t.Errorf("covered: %v", made.Items)
	}
	read, err := backup.Read(made.File, backup.Known{Root: b.Keyring.Root()})
	if err != nil || read.SHA256 != made.SHA256 || len(read.Rows) != len(b.Keyring.Ring().Keys()) || read.Point.Sequence != b.Tally().Records-1 {
		t.Errorf("%d rows at record %d: %v", len(read.Rows), read.Point.Sequence, err)
	}
	if rec := b.LastRecord(); rec.Kind != audit.KindKeys || rec.Words()["event"] != "backed up" {
		t.Errorf("last record: %v", rec.Words())
	}
}

// TestCopyStore: the copy matches its statement.
func TestCopyStore(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolPhone("alice")
	c, err := b.Recovery.CopyStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(c)
	if err := errors.Join(err, c.Close()); err != nil || int64(len(raw)) != c.Size {
		t.Errorf("%d bytes of %d: %v", len(raw), c.Size, err)
	}
	keys, err := b.Recovery.BackUpKeys(t.Context(), recovery.BackUp{Partial: true})
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

// comesBack restores the appliance on a copy of its store. clock is the host's time.
func comesBack(b *appliancetest.Bench, from recovery.StoreCopy, clock time.Time) {
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

func copyStore(b *appliancetest.Bench) recovery.StoreCopy {
	b.Helper()
	c, err := b.Recovery.CopyStore(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return c
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
	if _, err := b.Recovery.BackUpKeys(t.Context(), ask); !errors.Is(err, requests.ErrQuorum) {
		t.Fatal(err)
	}
	b.Tamper(1, `UPDATE change SET state = 'executed', required = 1, signed = '["local"]', ended_us = ? WHERE state = 'open'`, b.Clock.Now().UnixMicro())
	b.Forgeries(func() {
		if _, err := b.Recovery.BackUpKeys(t.Context(), ask); err == nil {
			t.Error("a backup that nobody voted for")
		}
	})
}
