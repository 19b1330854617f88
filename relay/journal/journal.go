// Package journal stores which transactions a device has acted on, so that it acts on each at
// most once despite replays and power failures, PROTOCOL.md §3.1.
package journal

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"countersign/internal/durable"
	"countersign/protocol"
)

// step is the last stored step of a transaction. A transaction is started once, then done or
// failed, and finally settled. If the process dies while it is started, it is unconfirmed: the
// act may or may not have taken place, and it is not repeated.
type step string

const (
	started     step = "started"     // durable before the act begins
	done        step = "done"        // the act was performed
	failed      step = "failed"      // the act was not performed
	unconfirmed step = "unconfirmed" // started before a crash, reported to the operator
	settled     step = "settled"     // the appliance knows the outcome, or refuses it
)

// ErrCorrupt means that a line other than the last cannot be read. Such a journal is not opened:
// the device could act twice.
var ErrCorrupt = errors.New("journal is corrupt")

// line is one line. Only started lines have Service and Amount, for people who read the file.
type line struct {
	At          time.Time        `json:"at"`
	Transaction string           `json:"transaction"` // 16 hexadecimal digits
	Step        step             `json:"step"`
	Service     protocol.Service `json:"service,omitempty"`
	Amount      *amount          `json:"amount,omitempty"`
}

type amount struct {
	Minor    uint64 `json:"minor"`
	Currency string `json:"currency"`
}

func parseLine(raw []byte) (l line, id protocol.TransactionID, err error) {
	if err := json.Unmarshal(raw, &l); err != nil {
		return l, id, err
	}
	if !slices.Contains([]step{started, done, failed, unconfirmed, settled}, l.Step) {
		return l, id, ErrCorrupt
	}
	id, err = protocol.ParseTransactionID(l.Transaction)
	return l, id, err
}

// Outcome is an outcome that the appliance does not know yet.
type Outcome struct {
	Transaction protocol.TransactionID
	Performed   bool
}

// Config configures a journal.
type Config struct {
	Path string
	// Keep is the age at which settled and unconfirmed transactions are dropped, 0: 7 days.
	// A replay cannot succeed that long: the appliance answers repeats for 24 hours.
	Keep time.Duration
	// MaxBytes is the size from which old transactions are dropped, 0: 4 MiB.
	MaxBytes int64
	Now      func() time.Time // nil: time.Now
}

// Journal is an append-only file of JSON lines
//
//	{"at":"2026-05-04T10:11:12Z","transaction":"0102030405060708","step":"started","service":100}
//
// and their index in memory. It is safe for concurrent use within one process; the caller
// excludes other processes. Once a write has failed, the state of the disk is unknown, and every
// method that writes returns that error.
type Journal struct {
	config Config

	mu          sync.Mutex // guards the following fields
	file        *os.File
	size        int64
	compact     int64 // size from which to try again
	index       map[protocol.TransactionID]line
	broken      error
	interrupted []protocol.TransactionID
}

// Open reads or creates a journal. It cuts off a torn last line, which a crash leaves behind;
// an earlier line that cannot be read is [ErrCorrupt].
func Open(c Config) (*Journal, error) {
	if c.Keep == 0 {
		c.Keep = 7 * 24 * time.Hour
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 4 << 20
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	j := &Journal{config: c, compact: c.MaxBytes, index: map[protocol.TransactionID]line{}}
	if err := j.load(); err != nil {
		return nil, fmt.Errorf("opening journal %s: %w", c.Path, err)
	}
	for id, l := range j.index {
		if l.Step == started {
			j.interrupted = append(j.interrupted, id)
		}
	}
	return j, nil
}

// load opens the file, fills the index, and cuts off a torn end.
func (j *Journal) load() error {
	file, err := os.OpenFile(j.config.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	j.file = file
	if err = j.read(); err == nil {
		err = j.cut()
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(j.config.Path))
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	return nil
}

// maxLine exceeds the length of every line that this package writes.
const maxLine = 4096

// read sets size to the length of the whole lines.
func (j *Journal) read() error {
	lines := bufio.NewReaderSize(j.file, maxLine)
	for {
		raw, err := lines.ReadSlice('\n')
		if len(raw) == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		l, id, parseErr := parseLine(raw)
		if err != nil || parseErr != nil {
			return torn(lines, string(raw))
		}
		j.index[id] = l
		j.size += int64(len(raw))
	}
}

// torn returns [ErrCorrupt] unless line is the rest of a write that a crash interrupted: at
// most zeros follow it.
func torn(rest *bufio.Reader, line string) error {
	tail, err := io.ReadAll(io.LimitReader(rest, maxLine))
	if err != nil {
		return err
	}
	if len(bytes.Trim(tail, "\x00\n")) != 0 {
		return fmt.Errorf("line %.40q: %w", line, ErrCorrupt)
	}
	return nil
}

func (j *Journal) cut() error {
	info, err := j.file.Stat()
	if err != nil || info.Size() == j.size {
		return err
	}
	if err := j.file.Truncate(j.size); err != nil {
		return err
	}
	return j.file.Sync()
}

// Interrupted lists the transactions that an earlier process started and did not finish. The
// caller reports each to the operator and then calls [Journal.MarkUnconfirmed].
func (j *Journal) Interrupted() []protocol.TransactionID { return j.interrupted }

// Begin durably records that the caller is about to act on a transaction. It returns true once
// for each transaction; false means that the caller must not act, because an earlier call
// returned true. An error means that the caller must not act either.
func (j *Journal) Begin(
	id protocol.TransactionID, service protocol.Service, a *protocol.Amount,
) (isFirst bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return false, j.broken
	}
	if _, isKnown := j.index[id]; isKnown {
		return false, nil
	}
	l := line{Step: started, Service: service}
	if a != nil {
		l.Amount = &amount{a.Minor, a.Currency}
	}
	err = j.appendLocked(id, l)
	return err == nil, err
}

// Finish durably records the outcome of an act.
func (j *Journal) Finish(id protocol.TransactionID, performed bool) error {
	if performed {
		return j.advance(id, done)
	}
	return j.advance(id, failed)
}

// MarkUnconfirmed records that the operator knows of an interrupted transaction.
func (j *Journal) MarkUnconfirmed(id protocol.TransactionID) error { return j.advance(id, unconfirmed) }

// Settle records that the appliance has accepted or refused an outcome.
func (j *Journal) Settle(id protocol.TransactionID) error { return j.advance(id, settled) }

func (j *Journal) advance(id protocol.TransactionID, to step) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return j.broken
	}
	if _, known := j.index[id]; !known {
		return fmt.Errorf("journal has no transaction %v", id)
	}
	return j.appendLocked(id, line{Step: to})
}

// Unsettled lists the outcomes that the appliance does not know yet, oldest first.
func (j *Journal) Unsettled() []Outcome {
	j.mu.Lock()
	defer j.mu.Unlock()
	var outcomes []Outcome
	for id, l := range j.index {
		if l.Step == done || l.Step == failed {
			outcomes = append(outcomes, Outcome{Transaction: id, Performed: l.Step == done})
		}
	}
	slices.SortFunc(outcomes, func(a, b Outcome) int {
		return cmp.Or(j.index[a.Transaction].At.Compare(j.index[b.Transaction].At), bytes.Compare(a.Transaction[:], b.Transaction[:]))
	})
	return outcomes
}

// appendLocked durably writes one line and then changes the index.
func (j *Journal) appendLocked(id protocol.TransactionID, l line) error {
	if j.size >= j.compact {
		if err := j.compactLocked(); err != nil {
			return j.breakLocked(err)
		}
	}
	l.At, l.Transaction = j.config.Now().UTC().Truncate(time.Millisecond), id.String()
	raw, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	n, err := j.file.Write(append(raw, '\n'))
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return j.breakLocked(err)
	}
	j.size += int64(n)
	j.index[id] = l
	return nil
}

// compactLocked replaces the file by one with a single line for each transaction that is young,
// or that the appliance or the operator does not know of.
func (j *Journal) compactLocked() error {
	oldest := j.config.Now().Add(-j.config.Keep)
	maps.DeleteFunc(j.index, func(_ protocol.TransactionID, l line) bool {
		return l.At.Before(oldest) && (l.Step == settled || l.Step == unconfirmed)
	})
	kept := slices.SortedFunc(maps.Values(j.index), func(a, b line) int { return a.At.Compare(b.At) })
	file, size, err := replace(j.config.Path, kept)
	if err != nil {
		return err
	}
	_ = j.file.Close() // the old file is gone; everything in it was durable
	// At least twice the rest, or a journal of young transactions would be rewritten each time.
	j.file, j.size, j.compact = file, size, max(j.config.MaxBytes, 2*size)
	return nil
}

// replace durably replaces the journal and returns the new file, open for appending.
func replace(path string, all []line) (*os.File, int64, error) {
	var content bytes.Buffer
	lines := json.NewEncoder(&content)
	for _, l := range all {
		if err := lines.Encode(l); err != nil {
			return nil, 0, err
		}
	}
	if err := durable.WriteFile(path, content.Bytes(), 0o600); err != nil {
		return nil, 0, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	return file, int64(content.Len()), err
}

func (j *Journal) breakLocked(err error) error {
	j.broken = fmt.Errorf("writing journal: %w", err)
	return j.broken
}

// Close closes the journal. Everything in it is durable already.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = fmt.Errorf("writing journal: %w", os.ErrClosed)
	}
	return j.file.Close()
}
