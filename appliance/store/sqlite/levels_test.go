package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
	"countersign/protocol"
)

// TestMigrate seals a file of the first schema, with rows in it.
func TestMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	parties := storetest.Parties{Client: storetest.NewClient("alice"), Device: storetest.NewDevice("door")}
	spend := parties.Spend(7)
	parties.Client.Highest, parties.Client.Cert, parties.Client.Roles = 7, nil, nil
	fillFirst(t, path, spend, parties)
	if _, err := openDatabase(t.Context(), Config{Path: path}); !errors.Is(err, ErrMigrate) {
		t.Fatalf("an old store was opened: %v", err)
	}
	sealOld(t, path)
	if _, err := OpenOld(t.Context(), path); !errors.Is(err, store.ErrExists) {
		t.Fatalf("a sealed store was migrated again: %v", err)
	}

	c, d := parties.Client, parties.Device
	s := openAt(t, path)
	if got, err := s.Client(t.Context(), c.ID); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("client %+v, %v; want %+v", got, err, c)
	}
	if out, err := s.Answered(t.Context(), spend.AnswerKey); err != nil || out.Decision.Transaction != spend.Decision.Transaction {
		t.Errorf("answered %+v, %v", out, err)
	}
	if i, err := s.Invitation(t.Context(), [32]byte{}); err != nil || i.Name != "bob" || i.Roles != nil || i.ExpiresAt.After(storetest.Epoch) {
		t.Errorf("invitation %+v, %v", i, err)
	}
	r, err := s.client(t.Context(), c.ID)
	if err != nil || r.Guard.Wrong != 0 || len(r.Windows) != 1 || r.Windows[0].Amount != 600 || r.Windows[0].Currency != "EUR" {
		t.Errorf("restraint %+v, %v", r.Restraint, err)
	}
	report := store.Report{Device: d.ID, Transaction: spend.Decision.Transaction, At: storetest.Epoch}
	if err := s.Report(t.Context(), report, storetest.Note("")); err != nil {
		t.Error(err)
	}
	if r, err = s.client(t.Context(), c.ID); err != nil || r.Windows[0].Amount != 0 {
		t.Errorf("nothing was given back: %+v, %v", r.Restraint, err)
	}
	if n, forged, err := s.Verify(t.Context()); err != nil || len(forged) != 0 || n == 0 {
		t.Errorf("%d records, %v, %v", n, forged, err)
	}
}

// sealOld seals everything in an old store.
func sealOld(t *testing.T, path string) {
	t.Helper()
	old, err := OpenOld(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := old.Close(); err != nil {
			t.Error(err)
		}
	}()
	contents, err := old.Read()
	if err != nil {
		t.Fatal(err)
	}
	seals := store.NewSeals(nil)
	seals.Add(1, make([]byte, 32), false)
	seals.Use(1)
	s := Sealing{
		Seals: seals, Settings: contents.Settings, Clients: map[protocol.ClientID]bool{}, Admins: map[[8]byte]bool{},
		Currency: func(protocol.Service) string { return "EUR" }, Now: storetest.Epoch, Record: storetest.Note("sealed"),
	}
	for _, c := range contents.Clients {
		s.Clients[c.ID] = true
	}
	if err := old.Seal(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Put(); err != nil {
		t.Fatal(err)
	}
}

// fillFirst creates a file of schema 1 with an approved spend of the parties.
func fillFirst(t *testing.T, path string, spend store.Spend, p storetest.Parties) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "rwc"))
	if err != nil {
		t.Fatal(err)
	}
	goose, err := provider(db)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := goose.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	c, d := p.Client, p.Device
	exec := func(statement string, args ...any) {
		if _, err := db.Exec(statement, args...); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	exec(`INSERT INTO client VALUES (1, ?, ?, ?, NULL, ?, 1, '[]', 1, ?, 7, ?)`,
		c.ID[:], c.Name, c.SigningKey[:], c.Verifier, make([]byte, 32), c.CreatedAt.UnixMicro())
	exec(`INSERT INTO device VALUES (1, ?, ?, ?, ?, 1, 1, 1, ?)`,
		d.ID[:], d.Name, d.SPIFFEID, d.Display, d.CreatedAt.UnixMicro())
	exec(`INSERT INTO decision VALUES (1, 1, 7, ?, 0, ?, 1, ?, 1, 0, ?, ?, NULL, NULL)`,
		spend.Serial[4:], spend.M3[:], spend.Decision.Transaction[:], spend.Decision.Marshal(), spend.Now.UnixMicro())
	exec(`INSERT INTO charge VALUES (1, 200, 86400, 0, 600)`)
	exec(`INSERT INTO used VALUES (1, 200, 86400, 0, 600, 1)`)
	exec(`INSERT INTO policy VALUES (1, ?, 1)`, []byte("one"))
	exec(`INSERT INTO invitation VALUES (?, 'client', 'bob', '', 0, 1, 2, NULL, NULL, NULL)`, make([]byte, 32))
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTriggers checks that the tables themselves keep counted guesses and final decisions from any
// program.
func TestTriggers(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint32(3) {
		if _, err := s.Try(t.Context(), p.Attempt(n)); err != nil {
			t.Fatal(err)
		}
	}
	first := p.Spend(5)
	first.Pending = &store.Pending{Role: "approver", Expires: storetest.Epoch}
	ask := p.Spend(6)
	ask.Dry, ask.Asks, ask.Now = true, &first.Serial, storetest.Epoch.Add(time.Hour)
	for _, spend := range []store.Spend{first, ask, p.Spend(7)} {
		if _, err := s.Spend(t.Context(), spend); err != nil {
			t.Fatal(err)
		}
	}
	for statement, want := range map[string]string{
		"UPDATE restraint SET wrong = 2":                        "does not go back",
		"UPDATE restraint SET highest = 3":                      "does not go back",
		"UPDATE restraint SET wrong = 5":                        "does not go back",
		"DELETE FROM restraint":                                 "is not deleted",
		"UPDATE decision SET final_result = 1 WHERE result = 3": "is not changed",
		"UPDATE decision SET final_us = 1 WHERE result = 3":     "is not changed",
		"UPDATE decision SET final_result = 1 WHERE result = 1": "CHECK constraint failed",
	} {
		err := s.write(t.Context(), "tampering", func(tx *txn) error {
			_, err := tx.exec(statement)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", statement, err, want)
		}
	}
	if g, err := s.Guard(t.Context(), p.Client.ID); err != nil || g.Wrong != 3 {
		t.Fatalf("guard %+v, %v", g, err)
	}
}

// TestAttemptsDropped checks that attempts do not accumulate.
func TestAttemptsDropped(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	spendRight := func(counter uint32, after time.Duration) {
		a := p.Attempt(counter)
		a.Now = a.Now.Add(after)
		spend := p.Spend(counter)
		_, err := s.Try(t.Context(), a)
		if counter%2 == 1 { // a wrong one first
			err = errors.Join(err, s.Wrong(t.Context(), a.AnswerKey, 2, storetest.Note("wrong")))
			a = storetest.Next(a)
			_, more := s.Try(t.Context(), a)
			err = errors.Join(err, more)
		}
		spend.AnswerKey, spend.Right, spend.Now = a.AnswerKey, true, a.Now
		_, more := s.Spend(t.Context(), spend)
		if err = errors.Join(err, more); err != nil {
			t.Fatal(err)
		}
	}
	for counter := range uint32(4) {
		spendRight(counter, time.Duration(counter)*time.Hour)
	}
	if got := attempts(t, s); got != 2 { // those that were answered "retry"
		t.Fatalf("%d attempts are kept", got)
	}
	spendRight(4, 2*time.Hour+store.AnswersKept)
	if got := attempts(t, s); got != 1 {
		t.Fatalf("%d attempts are kept after two days", got)
	}
}

func attempts(t *testing.T, s *database) (n int) {
	t.Helper()
	err := s.write(t.Context(), "counting", func(tx *txn) error { return tx.row("SELECT count(*) FROM attempt").Scan(&n) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const guessers = 4 // of one client

// guesser begins password attempts of every client of the store, several at once and each as soon
// as allowed, and prints a line for each that was begun.
func guesser(path string, w io.Writer) error {
	ctx := context.Background()
	s, err := openDatabase(ctx, Config{Path: path})
	if err == nil {
		_, err = storetest.Unseal(ctx, s)
	}
	if err != nil {
		return err
	}
	clients, err := s.ListClients(ctx)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, guessers*len(clients))
	for _, c := range clients {
		for range guessers {
			wg.Go(func() { errs <- guessOn(ctx, s, ack{storetest.Parties{Client: c}, w}) })
		}
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return errors.New("every client is locked")
}

func guessOn(ctx context.Context, s *database, a ack) error {
	now := time.Now()
	for {
		attempt := a.Attempt(rand.Uint32())
		attempt.Now = now
		tried, err := s.Try(ctx, attempt)
		switch {
		case err != nil || tried.Repeat:
			return fmt.Errorf("guessing: %+v, %w", tried, err)
		case tried.Code == protocol.CodeLocked && tried.After == 0:
			return nil
		case tried.Code == protocol.CodeLocked:
			now = now.Add(tried.After)
		case tried.Code == 0:
			if _, err := fmt.Fprintf(a.w, "%v\n", attempt.Client); err != nil {
				return err
			}
		}
	}
}

// TestCrashGuessing kills the process that guesses, again and again. No guess that it began is
// given back, and no client gets more than allowed.
func TestCrashGuessing(t *testing.T) {
	path := newPath(t)
	begun := map[string]int{}
	for round := range 6 {
		seedMany(t, path, seeding{prefix: fmt.Sprintf("round%d-", round), n: 16})
		lines := kill(t, killing{path: path, env: guesserEnv, after: rand.IntN(120)})
		for _, line := range lines {
			begun[strings.TrimSpace(line)]++
		}
		checkGuards(t, path, begun)
		t.Logf("round %d: %d begun", round, len(lines))
	}
}

func checkGuards(t *testing.T, path string, begun map[string]int) {
	t.Helper()
	s := openAt(t, path)
	clients, err := s.ListClients(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		g, err := s.Guard(t.Context(), c.ID)
		if n := begun[c.ID.String()]; err != nil || int(g.Wrong) < n || g.Wrong > store.HardLock {
			t.Fatalf("client %s: %d were acknowledged, guard is %+v, %v", c.Name, n, g, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"PRAGMA integrity_check": "ok",
		"SELECT count(*) FROM restraint WHERE wrong <> (SELECT count(*) FROM attempt a WHERE a.client = restraint.client)":    "0",
		"SELECT count(*) FROM restraint WHERE json_array_length(recent) <> min(wrong, 5)":                                     "0",
		"SELECT count(*) FROM restraint WHERE (wrong >= 5) AND until_us IS NULL":                                              "0",
		"SELECT count(*) FROM attempt a WHERE NOT EXISTS (SELECT 1 FROM restraint g WHERE g.client = a.client AND wrong > 0)": "0",
	} {
		if got := ask(t, path, query); got != want {
			t.Fatalf("%s: %s, want %s", query, got, want)
		}
	}
}
