// Package head maintains the head of a store: the record that shows that no key, setting, policy,
// administrator, open change request or open invitation is missing or old, which seals alone do not
// show. Its rules are the same for every driver.
package head

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

// Names of the records in table head.
const (
	name        = "head"
	invitations = "invitations"
)

// Head holds a digest of each kind of records that hang on it. Its revision rises with every change
// and never goes back; the host remembers it outside the store.
type Head struct {
	_          struct{} `cbor:",toarray"`
	Revision   uint64
	MAC        uint64            // version of mac that new seals are of
	Policy     uint64            // version of the active policy
	PolicyHash [sha256.Size]byte // of its document
	Digests    [kinds][sha256.Size]byte
}

// Kind is a kind of records of which the head holds a digest.
type Kind uint8

// The kinds. Of change requests those hang that are open or taken, of invitations the
// set of those that are open, see [OpenSet].
const (
	Keys Kind = iota
	Settings
	Policies
	Admins
	Changes
	Invitations
	kinds
)

var kindNames = [kinds]string{"keys", "settings", "policies", "administrators", "open change requests", "open invitations"}

func (h Kind) String() string { return kindNames[h] }

// kindOf returns the kind of a record that hangs on the head. ok is true for a change request that
// has ended, too, which no longer hangs on it.
func kindOf(r store.Sealed) (kind Kind, ok bool) {
	switch r := r.(type) {
	case store.Key:
		return Keys, true
	case store.Setting:
		return Settings, true
	case store.Policy:
		return Policies, true
	case store.Admin:
		return Admins, true
	case store.Change:
		return Changes, true
	case store.HeadRecord:
		return Invitations, r.Name == invitations
	}
	return 0, false
}

// Kinds lists the kinds.
func Kinds() (all []Kind) {
	for h := range kinds {
		all = append(all, h)
	}
	return all
}

// Activate makes a policy the active one.
func (h *Head) Activate(p store.Policy) {
	h.Policy, h.PolicyHash = p.Version, sha256.Sum256(p.Document)
}

// Marshal returns the head as drivers store it: a det-CBOR array.
func (h Head) Marshal() []byte { return audit.Encode(h) }

// Parse reads what Marshal writes.
func Parse(b []byte) (h Head, err error) {
	if err := cbor.Unmarshal(b, &h); err != nil || !bytes.Equal(h.Marshal(), b) {
		return h, fmt.Errorf("the head cannot be read: %w", store.ErrForged)
	}
	return h, nil
}

// Record returns the head as the store seals it.
func (h Head) Record() store.HeadRecord { return store.HeadRecord{Name: name, Body: h.Marshal()} }

// Mark returns what the anchor remembers of the head.
func (h Head) Mark() store.Mark {
	return store.Mark{Revision: h.Revision, MAC: h.MAC, Head: sha256.Sum256(h.Marshal())}
}

// allows reports whether a head is not older than the mark and not of another branch: a revision
// has one head.
func allows(m store.Mark, h Head) bool {
	return h.Revision > m.Revision ||
		h.Revision == m.Revision && (m.Head == [32]byte{} || m.Head == sha256.Sum256(h.Marshal()))
}

// Row is a sealed record as a driver read it.
type Row struct {
	Ref    int64 // of the driver: place of the row in its table
	Record store.Sealed
	Seal   store.Seal
	Err    error // why the row cannot be read as a record: it wraps [store.ErrForged]
}

// Read returns all rows of a kind. It reads the table once from beginning to end, without an index,
// so that exactly the verified rows are used, even if another program has changed an index. Of
// change requests it may leave out those that have ended, which do not hang on the head.
type Read func(Kind) ([]Row, error)

// Records holds the records of one kind that fit their seals, by their places.
type Records map[string]Row

// Find returns the record at the place of another, or [store.ErrNotFound].
func Find[R store.Sealed](all Records, at R) (R, error) {
	r, ok := all[store.Place(at)]
	if !ok {
		return at, store.ErrNotFound
	}
	return r.Record.(R), nil
}

// List returns the records, in no order.
func List[R store.Sealed](all Records) (records []R) {
	for _, r := range all {
		records = append(records, r.Record.(R))
	}
	return records
}

// digest is SHA-256 over the seals, as [store.Seal.Bytes] writes them, in the order of their places.
func (all Records) digest() (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, place := range slices.Sorted(maps.Keys(all)) {
		h.Write(all[place].Seal.Bytes())
	}
	h.Sum(sum[:0])
	return sum
}

// fitting returns the records that fit their seals, and raises the alarm for the others. Change
// requests that have ended do not hang on the head: they are returned apart, not verified.
func fitting(s *store.Seals, kind Kind, rows []Row) (all Records, ended []Row, err error) {
	all = Records{}
	for _, r := range rows {
		if r.Err != nil {
			continue
		}
		if c, ok := r.Record.(store.Change); ok && c.State.Ended() {
			ended = append(ended, r)
			continue
		}
		if s.Check(r.Record, r.Seal) != nil {
			continue
		}
		at := store.Place(r.Record)
		if _, twice := all[at]; twice {
			return nil, nil, s.Report(fmt.Sprintf("one of the %s is there twice", kind))
		}
		all[at] = r
	}
	return all, ended, nil
}

// Verify checks that the rows of a kind match the head. ended are change requests that have ended;
// the caller has to check each that it uses. Even with an error, all holds the rows that fit their
// seals.
func Verify(s *store.Seals, h Head, kind Kind, rows []Row) (all Records, ended []Row, err error) {
	all, ended, err = fitting(s, kind, rows)
	if err == nil && all.digest() != h.Digests[kind] {
		err = s.Report(fmt.Sprintf("%s do not match the head: a record is missing, old or foreign", kind))
	}
	return all, ended, err
}

// Open parses and verifies the head that a driver read, nil if there is none. A head that floor
// does not allow is an error. Without a head and without a floor the error is [store.ErrNotFound].
func Open(s *store.Seals, body, seal []byte, floor store.Mark) (h Head, err error) {
	switch {
	case body == nil && floor.Revision == 0:
		return h, store.ErrNotFound
	case body == nil:
		return h, s.Report("the head is missing")
	}
	if h, err = Parse(body); err != nil {
		return h, s.Report("the head cannot be read")
	}
	if err := s.Check(h.Record(), store.ParseSeal(seal)); err != nil {
		return h, err
	}
	if !allows(floor, h) || h.MAC != store.ParseSeal(seal).Version {
		return h, s.Report(fmt.Sprintf("the head has revision %d under mac@%d, and another of revision %d was there before",
			h.Revision, h.MAC, floor.Revision))
	}
	if h.MAC < floor.MAC {
		return h, s.Report(fmt.Sprintf("the head is under mac@%d, and mac@%d was in force before", h.MAC, floor.MAC))
	}
	return h, nil
}

// Policy returns a version of the policy. The active one must be the one that the head names.
func Policy(s *store.Seals, h Head, all Records, version uint64) (store.Policy, error) {
	p, err := Find(all, store.Policy{Version: version})
	if err == nil && version == h.Policy && sha256.Sum256(p.Document) != h.PolicyHash {
		err = s.Report("the active policy is not the one of the head")
	}
	return p, err
}

// Move changes the head and records that hang on it. The records are verified before the change,
// and compared afterwards with the records that the driver meant to write.
type Move struct {
	Head  Head // of the next revision
	seals *store.Seals
	want  map[Kind]Records
}

// Begin verifies the records of some kinds, which the caller is about to change.
func Begin(s *store.Seals, h Head, read Read, kinds ...Kind) (*Move, error) {
	m := &Move{Head: h, seals: s, want: map[Kind]Records{}}
	for _, kind := range kinds {
		rows, err := read(kind)
		if err != nil {
			return nil, err
		}
		if m.want[kind], _, err = Verify(s, h, kind, rows); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Found begins the first head of a store: it takes all records that fit their seals.
func Found(s *store.Seals, h Head) *Move {
	m := &Move{Head: h, seals: s, want: map[Kind]Records{}}
	for _, kind := range Kinds() {
		m.want[kind] = nil
	}
	return m
}

// Records returns the records of a kind, including those written so far.
func (m *Move) Records(kind Kind) Records { return m.want[kind] }

// Wrote notes a record that the driver writes, with its seal.
func (m *Move) Wrote(r store.Sealed, seal store.Seal) {
	kind, ok := kindOf(r)
	all := m.want[kind]
	if !ok || all == nil {
		return
	}
	at := store.Place(r)
	if c, ok := r.(store.Change); ok && c.State.Ended() {
		delete(all, at)
		return
	}
	all[at] = Row{Ref: all[at].Ref, Record: r, Seal: seal}
}

// End returns the next revision of the head with its seal. It reads the changed kinds again.
func (m *Move) End(read Read) (h Head, seal store.Seal, err error) {
	for _, kind := range Kinds() {
		want, moves := m.want[kind]
		if !moves {
			continue
		}
		rows, err := read(kind)
		if err != nil {
			return h, seal, err
		}
		all, _, err := fitting(m.seals, kind, rows)
		if err != nil {
			return h, seal, err
		}
		m.Head.Digests[kind] = all.digest()
		if want != nil && want.digest() != m.Head.Digests[kind] {
			return h, seal, m.seals.Report(fmt.Sprintf("%s are not what was written", kind))
		}
	}
	m.Head.Revision++
	seal, err = m.seals.MakeUnder(m.Head.Record(), m.Head.MAC)
	return m.Head, seal, err
}

// Raise puts the head of a restored store above every head of the lost host, which moved its head
// less than once a microsecond.
func (h *Head) Raise(r store.Recovered) {
	h.MAC, h.Revision = max(h.MAC, r.MAC), max(h.Revision, r.Revision, uint64(max(r.At.UnixMicro(), 0)))
}
