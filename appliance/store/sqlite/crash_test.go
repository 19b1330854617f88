package sqlite

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/storetest"
	"countersign/protocol"
)

// Each names the store that this test binary, run as a child, works on.
const (
	spenderEnv = "COUNTERSIGN_TEST_SPENDER"
	guesserEnv = "COUNTERSIGN_TEST_GUESSER"
)

func TestMain(m *testing.M) {
	for env, work := range map[string]func(string, io.Writer) error{spenderEnv: spender, guesserEnv: guesser} {
		path := os.Getenv(env)
		if path == "" {
			continue
		}
		if err := work(path, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func child(t *testing.T, env, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), env+"="+path)
	return cmd
}

// spender spends serials of every client of the store concurrently, without end, and prints a line
// for each acknowledged one.
func spender(path string, w io.Writer) error {
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
	devices, err := s.ListDevices(ctx)
	if err != nil {
		return err
	}
	failed := make(chan error)
	for i, c := range clients {
		p := storetest.Parties{Client: c, Device: devices[i]}
		go func() { failed <- spendOn(ctx, s, ack{p, w}) }()
	}
	return <-failed
}

type ack struct {
	storetest.Parties
	w io.Writer
}

func spendOn(ctx context.Context, s *database, a ack) error {
	for counter := uint32(a.Client.Highest + 1); ; counter++ {
		spend := a.Spend(counter)
		spend.Charges = []store.Charge{{Service: 100, Period: time.Hour, At: storetest.Epoch, Amount: 1}}
		out, err := s.Spend(ctx, spend)
		if err != nil || out.Reason != 0 || out.Replayed {
			return fmt.Errorf("spending %d: %+v, %w", counter, out, err)
		}
		// one write each, so that a line is whole or missing
		_, err = fmt.Fprintf(a.w, "%v %v %x %x\n", spend.Client, spend.Serial, spend.M3, spend.Salt)
		if err != nil {
			return err
		}
	}
}

// TestCrash kills the process that spends, again and again. Everything that it acknowledged must be
// stored, with one audit record, and nothing in part.
func TestCrash(t *testing.T) {
	path := newPath(t)
	seedMany(t, path, seeding{prefix: "client", n: 6})
	var acked []string
	for round := range 6 {
		lines := kill(t, killing{path: path, env: spenderEnv, after: rand.IntN(400)})
		acked = append(acked, lines...)
		checkCrashed(t, path, acked)
		t.Logf("round %d: %d acknowledged", round, len(lines))
	}
}

type seeding struct {
	prefix string
	n      int
}

func seedMany(t *testing.T, path string, what seeding) {
	t.Helper()
	s := openAt(t, path)
	for i := range what.n {
		if _, err := storetest.Seed(t.Context(), s, fmt.Sprintf("%s%02d", what.prefix, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

type killing struct {
	path, env string
	after     int // acknowledgements, less one
}

// kill runs a child and kills it after some acknowledgements.
func kill(t *testing.T, k killing) (lines []string) {
	t.Helper()
	cmd := child(t, k.env, k.path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		lines = append(lines, line)
		if len(lines) == k.after+1 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || stderr.Len() != 0 {
		t.Fatalf("child: %v, %s", err, stderr.String())
	}
	return lines
}

func checkCrashed(t *testing.T, path string, acked []string) {
	t.Helper()
	s := openAt(t, path)
	salts := map[string]int{}
	var decisions uint64
	for after := uint64(0); ; {
		page, err := s.Records(t.Context(), after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, rec := range page {
			if rec.Kind == audit.KindDecision {
				salts[hex.EncodeToString(rec.Salt[:])]++
				decisions++
			}
		}
		after = page[len(page)-1].Sequence
	}
	for _, line := range acked {
		key, salt := parseAck(t, line)
		if out, err := s.Answered(t.Context(), key); err != nil || out.Reason != 0 {
			t.Fatalf("acknowledged serial %v is lost: %+v, %v", key.Serial, out, err)
		}
		if salts[salt] != 1 {
			t.Fatalf("acknowledged serial %v has %d audit records", key.Serial, salts[salt])
		}
	}
	if n, err := s.Tally(t.Context()); err != nil || n.Decisions != decisions {
		t.Fatalf("%d decision records, tally %+v, %v", decisions, n, err)
	}
	checkCharged(t, s, decisions)
	if n, forged, err := s.Verify(t.Context()); err != nil || len(forged) != 0 || n == 0 {
		t.Fatalf("%d records, of them forged: %v, %v", n, forged, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkIntegrity(t, path)
}

// checkCharged requires that each decision was charged once.
func checkCharged(t *testing.T, s *database, decisions uint64) {
	t.Helper()
	clients, err := s.ListClients(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var charged uint64
	for _, c := range clients {
		r, err := s.client(t.Context(), c.ID)
		if err != nil {
			t.Fatal(err)
		}
		charged += r.Used(store.Charge{Service: 100, Period: time.Hour, At: storetest.Epoch}).Count
	}
	if charged != decisions {
		t.Fatalf("%d decisions, %d were charged", decisions, charged)
	}
}

func parseAck(t *testing.T, line string) (key store.AnswerKey, salt string) {
	t.Helper()
	f := strings.Fields(line)
	client, err1 := hex.DecodeString(f[0])
	serial, err2 := protocol.ParseSerial(f[1])
	m3, err3 := hex.DecodeString(f[2])
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return store.AnswerKey{Client: protocol.ClientID(client), Serial: serial, M3: [32]byte(m3)}, f[3]
}

// checkIntegrity asks SQLite, and compares the tables with each other.
func checkIntegrity(t *testing.T, path string) {
	t.Helper()
	for query, want := range map[string]string{
		"PRAGMA integrity_check":                        "ok",
		"SELECT count(*) FROM pragma_foreign_key_check": "0",
		"SELECT count(*) - (SELECT count(*) FROM decision WHERE charges IS NOT NULL) FROM decision": "0",
		`SELECT count(*) FROM restraint WHERE highest <>
			(SELECT coalesce(max(counter), -1) FROM decision WHERE client = restraint.client)`: "0",
	} {
		if got := ask(t, path, query); got != want {
			t.Fatalf("%s: %s, want %s", query, got, want)
		}
	}
}

// ask queries the closed store as another program would.
func ask(t *testing.T, path, query string) (answer string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	err = db.QueryRow(query).Scan(&answer)
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}
