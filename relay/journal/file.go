package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"countersign/protocol"

	"countersign/internal/durable"
)

type amountJSON struct {
	Minor    uint64 `json:"minor"`
	Currency string `json:"currency"`
}

type recordJSON struct {
	At          time.Time        `json:"at"`
	Transaction string           `json:"transaction"`
	Step        Step             `json:"step"`
	Service     protocol.Service `json:"service,omitempty"`
	Amount      *amountJSON      `json:"amount,omitempty"`
}

// MarshalJSON writes a line, without its end.
func (r Record) MarshalJSON() ([]byte, error) {
	w := recordJSON{At: r.At, Transaction: r.Transaction.String(), Step: r.Step, Service: r.Service}
	if r.Amount != nil {
		w.Amount = &amountJSON{r.Amount.Minor, r.Amount.Currency}
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads a line.
func (r *Record) UnmarshalJSON(b []byte) error {
	var w recordJSON
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	step, err := ParseStep(string(w.Step))
	if err != nil {
		return err
	}
	id, err := protocol.ParseTransactionID(w.Transaction)
	if err != nil {
		return err
	}
	*r = Record{At: w.At, Transaction: id, Step: step, Service: w.Service}
	if w.Amount != nil {
		r.Amount = &protocol.Amount{Minor: w.Amount.Minor, Currency: w.Amount.Currency}
	}
	return nil
}

// load opens the file, fills the index, and cuts a torn end off.
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

// maxLine is above the longest line that this package writes.
const maxLine = 4096

// read leaves in size how many bytes are whole lines.
func (j *Journal) read() error {
	lines := bufio.NewReaderSize(j.file, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		var r Record
		if err != nil || json.Unmarshal(line, &r) != nil {
			return torn(lines, string(line))
		}
		j.index[r.Transaction] = r
		j.size += int64(len(line))
	}
}

// torn tells what is left of the last write before a crash, which a page of
// zeros may follow, from damage inside: behind it there is no other line.
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

// compactLocked replaces the file by one that has a single line for each
// transaction that is young, or that somebody is still to be told of.
func (j *Journal) compactLocked() error {
	oldest := j.config.Now().Add(-j.config.Keep)
	var kept []Record
	for id, r := range j.index {
		if r.At.Before(oldest) && (r.Step == Settled || r.Step == Unconfirmed) {
			delete(j.index, id)
			continue
		}
		kept = append(kept, r)
	}
	slices.SortFunc(kept, func(a, b Record) int { return a.At.Compare(b.At) })
	file, size, err := replace(j.config.Path, kept)
	if err != nil {
		return err
	}
	_ = j.file.Close() // the old file is gone, and all of it was durable
	// Twice what is left, lest a journal of young transactions be rewritten each time.
	j.file, j.size, j.compact = file, size, max(j.config.MaxBytes, 2*size)
	return nil
}

// replace puts a new file in place of the journal, durably, and gives it open for
// appending.
func replace(path string, records []Record) (*os.File, int64, error) {
	var content bytes.Buffer
	lines := json.NewEncoder(&content)
	for _, r := range records {
		if err := lines.Encode(r); err != nil {
			return nil, 0, err
		}
	}
	if err := durable.WriteFile(path, content.Bytes(), 0o600); err != nil {
		return nil, 0, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	return file, int64(content.Len()), err
}
