package journal

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/protocol"
)

func open(t *testing.T, c Config) *Journal {
	t.Helper()
	j, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func id(n byte) protocol.TransactionID { return protocol.TransactionID{7: n} }

func begin(t *testing.T, j *Journal, n byte) bool {
	t.Helper()
	first, err := j.Begin(id(n), 200, &protocol.Amount{Minor: 250, Currency: "EUR"})
	if err != nil {
		t.Fatal(err)
	}
	return first
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBeginOnce(t *testing.T) {
	c := Config{Path: filepath.Join(t.TempDir(), "journal")}
	j := open(t, c)
	var won sync.Map
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			if first, err := j.Begin(id(1), 200, nil); err == nil && first {
				won.Store(i, true)
			}
		})
	}
	all.Wait()
	count := 0
	won.Range(func(any, any) bool { count++; return true })
	if count != 1 {
		t.Errorf("%d of 100 may act, want 1", count)
	}
	must(t, j.Close())
	if begin(t, open(t, c), 1) {
		t.Error("may act again after a restart")
	}
}

func TestSteps(t *testing.T) {
	c := Config{Path: filepath.Join(t.TempDir(), "journal")}
	j := open(t, c)
	for n := range byte(5) {
		begin(t, j, n)
	}
	must(t, j.Finish(id(1), true))
	must(t, j.Finish(id(2), false))
	must(t, j.Finish(id(3), true))
	must(t, j.Settle(id(3)))
	must(t, j.Close())

	j = open(t, c)
	if got := j.Unsettled(); len(got) != 2 || got[0] != (Outcome{id(1), true}) || got[1] != (Outcome{id(2), false}) {
		t.Errorf("unsettled %v, want 1 performed and 2 not", got)
	}
	if got := j.Interrupted(); len(got) != 2 {
		t.Errorf("interrupted %v, want 0 and 4", got)
	}
	for _, left := range j.Interrupted() {
		must(t, j.MarkUnconfirmed(left))
	}
	if err := j.Finish(id(9), true); err == nil {
		t.Error("finished what was never started")
	}
	must(t, j.Close())
	j = open(t, c)
	if got := j.Interrupted(); len(got) != 0 {
		t.Errorf("interrupted %v after it was marked", got)
	}
	for n := range byte(5) {
		if begin(t, j, n) {
			t.Errorf("transaction %d may be acted on again", n)
		}
	}
}

// TestFormat reads and writes the lines of every release.
func TestFormat(t *testing.T) {
	const lines = `{"at":"2026-05-04T10:11:12.013Z","transaction":"0000000000000001","step":"started","service":200,"amount":{"minor":250,"currency":"EUR"}}
{"at":"2026-05-04T10:11:13Z","transaction":"0000000000000001","step":"done"}
{"at":"2026-05-04T10:11:14Z","transaction":"0000000000000002","step":"failed"}
{"at":"2026-05-04T10:11:15Z","transaction":"0000000000000003","step":"unconfirmed"}
{"at":"2026-05-04T10:11:16Z","transaction":"0000000000000004","step":"settled"}
{"at":"2026-05-04T10:11:17Z","transaction":"0000000000000005","step":"started"}
`
	path := filepath.Join(t.TempDir(), "journal")
	must(t, os.WriteFile(path, []byte(lines), 0o600))
	j := open(t, Config{Path: path, Now: func() time.Time { return time.Date(2026, 5, 4, 10, 11, 12, 13e6, time.UTC) }})
	if got := j.Unsettled(); len(got) != 2 || got[0] != (Outcome{id(1), true}) || got[1] != (Outcome{id(2), false}) {
		t.Errorf("unsettled %v, want 1 performed and 2 not", got)
	}
	if got := j.Interrupted(); len(got) != 1 || got[0] != id(5) {
		t.Errorf("interrupted %v, want 5", got)
	}
	begin(t, j, 6)
	raw, err := os.ReadFile(path)
	must(t, err)
	first, _, _ := strings.Cut(lines, "\n")
	if want := lines + strings.Replace(first, "01\"", "06\"", 1) + "\n"; string(raw) != want {
		t.Errorf("wrote\n%s, want\n%s", raw, want)
	}
}

func TestTornEnd(t *testing.T) {
	whole := `{"at":"2026-05-04T10:11:12Z","transaction":"0000000000000001","step":"started"}` + "\n"
	for name, c := range map[string]struct {
		end  string
		want error
	}{
		"nothing":               {"", nil},
		"half a line":           {whole[:40], nil},
		"a line without end":    {whole[:len(whole)-1], nil},
		"zeros":                 {strings.Repeat("\x00", 600), nil},
		"half a line and zeros": {whole[:10] + strings.Repeat("\x00", 70) + "\n", nil},
		"damage inside":         {"{}\n" + whole, ErrCorrupt},
		"another step":          {strings.Replace(whole, "started", "perhaps", 1) + whole, ErrCorrupt},
		"no line at all":        {strings.Repeat("x", maxLine+1) + "\n" + whole, ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal")
			must(t, os.WriteFile(path, []byte(whole+c.end), 0o600))
			j, err := Open(Config{Path: path})
			if !errors.Is(err, c.want) {
				t.Fatalf("opened with %v, want %v", err, c.want)
			}
			if err != nil {
				return
			}
			if begin(t, j, 1) || !begin(t, j, 2) {
				t.Error("index is not that of the whole lines")
			}
			must(t, j.Close())
			if j = open(t, Config{Path: path}); begin(t, j, 2) {
				t.Error("the line written after the cut is lost")
			}
		})
	}
}

func TestCompaction(t *testing.T) {
	now := time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)
	c := Config{Path: filepath.Join(t.TempDir(), "journal"), MaxBytes: 1000, Now: func() time.Time { return now }}
	j := open(t, c)
	begin(t, j, 1)
	begin(t, j, 2)
	must(t, j.Finish(id(2), true))
	begin(t, j, 3)
	must(t, j.Finish(id(3), true))
	must(t, j.Settle(id(3)))
	now = now.Add(8 * 24 * time.Hour)
	for n := byte(10); n < 60; n++ {
		begin(t, j, n)
		must(t, j.Finish(id(n), true))
		must(t, j.Settle(id(n)))
		now = now.Add(24 * time.Hour)
	}
	info, err := os.Stat(c.Path)
	must(t, err)
	if info.Size() > 4*c.MaxBytes {
		t.Errorf("the journal has %d bytes after 53 transactions, want few", info.Size())
	}
	must(t, j.Close())
	j = open(t, c)
	for n, want := range map[byte]bool{1: false, 2: false, 3: true, 10: true, 53: false, 59: false} {
		if got := begin(t, j, n); got != want {
			t.Errorf("transaction %d is new: %v, want %v", n, got, want)
		}
	}
	if got := j.Unsettled(); len(got) != 1 || got[0].Transaction != id(2) {
		t.Errorf("unsettled %v, want transaction 2", got)
	}
}

func TestNoActAfterFailedWrite(t *testing.T) {
	j := open(t, Config{Path: filepath.Join(t.TempDir(), "journal")})
	must(t, j.file.Close())
	for range 2 {
		if first, err := j.Begin(id(1), 200, nil); first || !errors.Is(err, os.ErrClosed) {
			t.Errorf("may act: %v, %v; want the error of the write", first, err)
		}
	}
}
