// Package journal remembers which transactions a device has acted on, so that
// each is acted on at most once whatever is replayed and whenever the power fails,
// PROTOCOL.md §3.1.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"countersign/protocol"
)

// Step is how far a transaction has come.
type Step string

// The steps. A transaction is started once; then it is done or failed, and at
// last settled. One that a dead process has left started is unconfirmed: nobody
// knows whether the act took place, and it is not repeated.
const (
	Started     Step = "started"     // durable before the act begins
	Done        Step = "done"        // the act was performed
	Failed      Step = "failed"      // the act was not performed
	Unconfirmed Step = "unconfirmed" // started before a crash, told to the operator
	Settled     Step = "settled"     // the appliance knows the outcome, or refuses to hear it
)

// ParseStep reads what a line holds.
func ParseStep(s string) (Step, error) {
	if steps := []Step{Started, Done, Failed, Unconfirmed, Settled}; slices.Contains(steps, Step(s)) {
		return Step(s), nil
	}
	return "", fmt.Errorf("journal step %q: %w", s, ErrCorrupt)
}

func (s Step) String() string { return string(s) }

// ErrCorrupt says that a line other than the last cannot be read. Without the
// journal nobody can tell what has been done, so it is not opened.
var ErrCorrupt = errors.New("journal is corrupt")

// Record is one line. Service and Amount are for whoever reads the file; they are
// on started lines only.
type Record struct {
	At          time.Time
	Transaction protocol.TransactionID
	Step        Step
	Service     protocol.Service
	Amount      *protocol.Amount
}

// Outcome is what the appliance is still to be told.
type Outcome struct {
	Transaction protocol.TransactionID
	Performed   bool
}

// Config says where a journal is and how much it keeps.
type Config struct {
	Path string
	// Keep is the age at which settled and unconfirmed transactions are dropped, 0:
	// 7 days. Nothing can be replayed that long: S answers repeats for 24 hours.
	Keep time.Duration
	// MaxBytes is the size from which old transactions are dropped, 0: 4 MiB.
	MaxBytes int64
	Now      func() time.Time // nil: time.Now
}

// Journal is an append-only file of JSON lines
//
//	{"at":"2026-05-04T10:11:12Z","transaction":"0102030405060708","step":"started","service":100}
//
// and their index in memory. It is safe for concurrent use by one process;
// that there is only one is for the caller to hold. Once a write has failed every
// method that writes returns that error: what is on the disk is not known any more.
type Journal struct {
	config Config

	mu       sync.Mutex // guards what follows
	file     *os.File
	size     int64
	compact  int64 // size from which to try again
	index    map[protocol.TransactionID]Record
	broken   error
	leftOver []protocol.TransactionID
}

// Open reads or makes a journal. A torn last line, which a crash leaves behind, is
// cut off; an earlier line that cannot be read is [ErrCorrupt].
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
	j := &Journal{config: c, compact: c.MaxBytes, index: map[protocol.TransactionID]Record{}}
	if err := j.load(); err != nil {
		return nil, fmt.Errorf("opening journal %s: %w", c.Path, err)
	}
	for id, r := range j.index {
		if r.Step == Started {
			j.leftOver = append(j.leftOver, id)
		}
	}
	return j, nil
}

// LeftOver lists the transactions that a dead process had started. Each is to be
// told to the operator and then confirmed with [Journal.Told].
func (j *Journal) LeftOver() []protocol.TransactionID { return j.leftOver }

// Begin makes it durable that a transaction is being acted on. It is true once
// for each transaction, and then the caller acts; false says that somebody has,
// or is about to. An error says that nobody may.
func (j *Journal) Begin(r Record) (first bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return false, j.broken
	}
	if _, known := j.index[r.Transaction]; known {
		return false, nil
	}
	r.Step, r.At = Started, j.now()
	if err := j.appendLocked(r); err != nil {
		return false, err
	}
	return true, nil
}

// Finish makes durable what came of an act.
func (j *Journal) Finish(id protocol.TransactionID, performed bool) error {
	if performed {
		return j.advance(id, Done)
	}
	return j.advance(id, Failed)
}

// Told records that the operator knows of an unconfirmed transaction.
func (j *Journal) Told(id protocol.TransactionID) error { return j.advance(id, Unconfirmed) }

// Settle records that the appliance has answered to an outcome for good.
func (j *Journal) Settle(id protocol.TransactionID) error { return j.advance(id, Settled) }

func (j *Journal) now() time.Time { return j.config.Now().UTC().Truncate(time.Millisecond) }

func (j *Journal) advance(id protocol.TransactionID, to Step) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return j.broken
	}
	if _, known := j.index[id]; !known {
		return fmt.Errorf("journal has no transaction %v", id)
	}
	return j.appendLocked(Record{At: j.now(), Transaction: id, Step: to})
}

// Unsettled lists what the appliance has not been told yet, oldest first.
func (j *Journal) Unsettled() []Outcome {
	j.mu.Lock()
	defer j.mu.Unlock()
	var records []Record
	for _, r := range j.index {
		if r.Step == Done || r.Step == Failed {
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b Record) int { return a.At.Compare(b.At) })
	outcomes := make([]Outcome, len(records))
	for i, r := range records {
		outcomes[i] = Outcome{Transaction: r.Transaction, Performed: r.Step == Done}
	}
	return outcomes
}

// appendLocked writes one line durably, then changes the index.
func (j *Journal) appendLocked(r Record) error {
	if j.size >= j.compact {
		if err := j.compactLocked(); err != nil {
			return j.breakLocked(err)
		}
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	n, err := j.file.Write(append(line, '\n'))
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return j.breakLocked(err)
	}
	j.size += int64(n)
	j.index[r.Transaction] = r
	return nil
}

func (j *Journal) breakLocked(err error) error {
	j.broken = fmt.Errorf("writing journal: %w", err)
	return j.broken
}

// Close ends the use of the journal. Everything is durable already.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = fmt.Errorf("writing journal: %w", os.ErrClosed)
	}
	return j.file.Close()
}
