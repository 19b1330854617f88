package store

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"countersign/protocol"
)

// Row is a sealed record as a driver read it.
type Row struct {
	Ref    int64 // of the driver: place of the row in its table
	Record Sealed
	Seal   Seal
	Err    error // why the row cannot be read as a record: it wraps [ErrForged]
}

// ReadHanging reads all rows of a kind. It reads the table once from beginning to end, without an
// index, so that the rows that are verified are the rows that are used, whatever another program
// did to the indexes.
type ReadHanging func(Hanging) ([]Row, error)

// Hung holds the records of one kind that fit their seals, by their places.
type Hung map[string]Row

// Find returns the record at the place of another, or [ErrNotFound].
func Find[R Sealed](all Hung, at R) (R, error) {
	r, ok := all[place(at)]
	if !ok {
		return at, ErrNotFound
	}
	return r.Record.(R), nil
}

// List returns the records, in no order.
func List[R Sealed](all Hung) (records []R) {
	for _, r := range all {
		records = append(records, r.Record.(R))
	}
	return records
}

// digest is SHA-256 over the seals, as [Seal.Bytes] writes them, in the order of their places.
func (all Hung) digest() (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, place := range slices.Sorted(maps.Keys(all)) {
		h.Write(all[place].Seal.Bytes())
	}
	h.Sum(sum[:0])
	return sum
}

// fitting returns the records that fit their seals, and raises the alarm for the others. Change
// requests that have ended do not hang on the head: they are returned apart, not verified.
func (s *Seals) fitting(kind Hanging, rows []Row) (all Hung, ended []Row, err error) {
	all = Hung{}
	for _, r := range rows {
		if r.Err != nil {
			continue
		}
		if c, ok := r.Record.(Change); ok && c.State.Ended() {
			ended = append(ended, r)
			continue
		}
		if s.Check(r.Record, r.Seal) != nil {
			continue
		}
		at := place(r.Record)
		if _, twice := all[at]; twice {
			return nil, nil, s.Report(fmt.Sprintf("one of the %s is there twice", kind))
		}
		all[at] = r
	}
	return all, ended, nil
}

// Hung verifies that the rows of a kind are those of the head. ended are change requests that have
// ended, which the caller has to check where it uses them. With an error it still returns the rows
// that fit their seals.
func (s *Seals) Hung(h Head, kind Hanging, rows []Row) (all Hung, ended []Row, err error) {
	all, ended, err = s.fitting(kind, rows)
	if err == nil && all.digest() != h.Digests[kind] {
		err = s.Report(fmt.Sprintf("%s do not match the head: a record is missing, old or foreign", kind))
	}
	return all, ended, err
}

// Head parses and verifies the head that a driver read, nil if there is none. A head that floor
// does not allow is an error. Without a head and without a floor the error is [ErrNotFound].
func (s *Seals) Head(body, seal []byte, floor Mark) (h Head, err error) {
	switch {
	case body == nil && floor.Revision == 0:
		return h, ErrNotFound
	case body == nil:
		return h, s.Report("the head is missing")
	}
	if h, err = ParseHead(body); err != nil {
		return h, s.Report("the head cannot be read")
	}
	if err := s.Check(h, ParseSeal(seal)); err != nil {
		return h, err
	}
	if !floor.allows(h) || h.MAC != ParseSeal(seal).Version {
		return h, s.Report(fmt.Sprintf("the head has revision %d under mac@%d, and another of revision %d was there before",
			h.Revision, h.MAC, floor.Revision))
	}
	if h.MAC < floor.MAC {
		return h, s.Report(fmt.Sprintf("the head is under mac@%d, and mac@%d was in force before", h.MAC, floor.MAC))
	}
	return h, nil
}

// Policy returns a version of the policy. The active one must be the one that the head names.
func (s *Seals) Policy(h Head, all Hung, version uint64) (Policy, error) {
	p, err := Find(all, Policy{Version: version})
	if err == nil && version == h.Policy && sha256.Sum256(p.Document) != h.PolicyHash {
		err = s.Report("the active policy is not the one of the head")
	}
	return p, err
}

// Move is one change of the head and of records that hang on it. It is the same for every driver:
// the records are verified before the change, and what is stored after it must be what was written.
type Move struct {
	Head  Head // of the next revision
	seals *Seals
	want  map[Hanging]Hung
}

// Move verifies the records of some kinds, which the caller is about to change.
func (s *Seals) Move(h Head, read ReadHanging, kinds ...Hanging) (*Move, error) {
	m := &Move{Head: h, seals: s, want: map[Hanging]Hung{}}
	for _, kind := range kinds {
		rows, err := read(kind)
		if err != nil {
			return nil, err
		}
		if m.want[kind], _, err = s.Hung(h, kind, rows); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Found begins the first head of a store: it takes all records that fit their seals.
func (s *Seals) Found(h Head) *Move {
	m := &Move{Head: h, seals: s, want: map[Hanging]Hung{}}
	for _, kind := range AllHanging() {
		m.want[kind] = nil
	}
	return m
}

// Hung returns the records of a kind as they are after what was written so far.
func (m *Move) Hung(kind Hanging) Hung { return m.want[kind] }

// Wrote notes a record that the driver writes, with its seal.
func (m *Move) Wrote(r Sealed, seal Seal) {
	kind, ok := hangingOf(r)
	all := m.want[kind]
	if !ok || all == nil {
		return
	}
	at := place(r)
	if c, ok := r.(Change); ok && c.State.Ended() {
		delete(all, at)
		return
	}
	all[at] = Row{Ref: all[at].Ref, Record: r, Seal: seal}
}

// End returns the next revision of the head with its seal. It reads the changed kinds again.
func (m *Move) End(read ReadHanging) (h Head, seal Seal, err error) {
	for _, kind := range AllHanging() {
		want, moves := m.want[kind]
		if !moves {
			continue
		}
		rows, err := read(kind)
		if err != nil {
			return h, seal, err
		}
		all, _, err := m.seals.fitting(kind, rows)
		if err != nil {
			return h, seal, err
		}
		m.Head.Digests[kind] = all.digest()
		if want != nil && want.digest() != m.Head.Digests[kind] {
			return h, seal, m.seals.Report(fmt.Sprintf("%s are not what was written", kind))
		}
	}
	m.Head.Revision++
	seal, err = m.seals.MakeUnder(m.Head, m.Head.MAC)
	return m.Head, seal, err
}

// Raise puts a head above every head of the host that was lost: that host moved its head less than
// once a microsecond.
func (r Recovered) Raise(h *Head) {
	h.MAC, h.Revision = max(h.MAC, r.MAC), max(h.Revision, r.Revision, uint64(max(r.At.UnixMicro(), 0)))
}

// Expire ends an invitation that was open in the copy, whatever the clocks of the two hosts say.
func (r Recovered) Expire(i Invitation) Invitation {
	for _, end := range []time.Time{Stamp(r.At), i.CreatedAt} {
		if end.Before(i.ExpiresAt) {
			i.ExpiresAt = end
		}
	}
	return i
}

// Deny returns the end of a decision that waited for a second approver in the copy.
func (r Recovered) Deny() Final {
	return Final{Result: protocol.ResultDenied, Reason: protocol.CodeExpired, At: Stamp(r.At)}
}
