package store

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"time"

	"countersign/protocol"
)

// The records as their seals cover them. The number of a field is never used again, and a field
// that is zero is left out, so that a release with one more field seals old records as the release
// before did. TestSealCoversEveryField makes sure that no field is forgotten.

func (c Client) sealed() sealed {
	return sealed{"client", c.ID[:], struct {
		Name       string   `cbor:"1,keyasint,omitempty"`
		SigningKey []byte   `cbor:"2,keyasint,omitempty"`
		UVKey      []byte   `cbor:"3,keyasint,omitempty"`
		Verifier   []byte   `cbor:"4,keyasint,omitempty"`
		Status     Status   `cbor:"5,keyasint,omitempty"`
		Roles      []string `cbor:"6,keyasint,omitempty"`
		Version    uint64   `cbor:"7,keyasint,omitempty"`
		Cert       []byte   `cbor:"8,keyasint,omitempty"`
		Created    int64    `cbor:"9,keyasint,omitempty"`
	}{c.Name, some(c.SigningKey[:]), optionalKey(c.UVKey), c.Verifier, c.Status, c.Roles, c.Version, c.Cert, micros(c.CreatedAt)}}
}

func (r Restraint) sealed() sealed {
	return sealed{"restraint", r.Client[:], struct {
		Highest int64       `cbor:"1,keyasint"` // 0 is a counter
		Wrong   uint32      `cbor:"2,keyasint,omitempty"`
		Recent  []int64     `cbor:"3,keyasint,omitempty"`
		Until   int64       `cbor:"4,keyasint,omitempty"`
		Begun   []Challenge `cbor:"5,keyasint,omitempty"`
		Windows []Window    `cbor:"6,keyasint,omitempty"`
		Sums    []Sum       `cbor:"7,keyasint,omitempty"`
	}{r.Highest, r.Guard.Wrong, allMicros(r.Guard.Recent), micros(r.Guard.Until), r.Begun, r.Windows, r.Sums}}
}

func (d Device) sealed() sealed {
	return sealed{"device", d.ID[:], struct {
		Name     string         `cbor:"1,keyasint,omitempty"`
		SPIFFEID string         `cbor:"2,keyasint,omitempty"`
		Display  string         `cbor:"3,keyasint,omitempty"`
		Floor    protocol.Level `cbor:"4,keyasint,omitempty"`
		Status   Status         `cbor:"5,keyasint,omitempty"`
		Version  uint64         `cbor:"6,keyasint,omitempty"`
		Created  int64          `cbor:"7,keyasint,omitempty"`
	}{d.Name, d.SPIFFEID, d.Display, d.Floor, d.Status, d.Version, micros(d.CreatedAt)}}
}

func (i Invitation) sealed() sealed {
	return sealed{"invitation", i.Code[:], struct {
		Kind     Kind           `cbor:"1,keyasint,omitempty"`
		Name     string         `cbor:"2,keyasint,omitempty"`
		Display  string         `cbor:"3,keyasint,omitempty"`
		Roles    []string       `cbor:"4,keyasint,omitempty"`
		Floor    protocol.Level `cbor:"5,keyasint,omitempty"`
		Created  int64          `cbor:"6,keyasint,omitempty"`
		Expires  int64          `cbor:"7,keyasint,omitempty"`
		Used     int64          `cbor:"8,keyasint,omitempty"`
		Request  []byte         `cbor:"9,keyasint,omitempty"`
		Response []byte         `cbor:"10,keyasint,omitempty"`
		Number   uint64         `cbor:"11,keyasint,omitempty"`
		Change   []byte         `cbor:"12,keyasint,omitempty"`
	}{
		i.Kind, i.Name, i.Display, i.Roles, i.Floor, micros(i.CreatedAt), micros(i.ExpiresAt), micros(i.UsedAt),
		some(i.Request[:]), i.Response, i.Number, some(i.Change[:]),
	}}
}

// Kept is a decision as a driver keeps it.
type Kept struct {
	Spent
	Dry        bool
	First      *Approves // the pending decision that this one is the second approval of
	Charges    []Charge  // charged to the first client, or to this one
	Performed  bool      // as the device reported
	ReportedAt time.Time // zero: it has not
}

type sealedCharge struct {
	_        struct{} `cbor:",toarray"`
	Service  protocol.Service
	Period   uint64
	Start    int64
	Currency string
	Amount   uint64
}

type sealedPending struct {
	_       struct{} `cbor:",toarray"`
	Role    string
	Expires int64
}

func serialKey(id protocol.ClientID, serial protocol.Serial, more ...byte) []byte {
	return slices.Concat(id[:], serial[:4], more) // the random part is a field
}

func (k Kept) sealed() sealed {
	fields := struct {
		Random      []byte         `cbor:"1,keyasint,omitempty"`
		Attempt     uint8          `cbor:"2,keyasint,omitempty"`
		M3          []byte         `cbor:"3,keyasint,omitempty"`
		Result      uint64         `cbor:"4,keyasint,omitempty"`
		Reason      uint64         `cbor:"5,keyasint,omitempty"`
		Decision    []byte         `cbor:"6,keyasint,omitempty"`
		Decided     int64          `cbor:"7,keyasint,omitempty"`
		Asked       []uint64       `cbor:"8,keyasint,omitempty"`
		Pending     *sealedPending `cbor:"9,keyasint,omitempty"`
		Final       []int64        `cbor:"11,keyasint,omitempty"` // result, reason, at
		Dry         bool           `cbor:"12,keyasint,omitempty"`
		FirstClient []byte         `cbor:"13,keyasint,omitempty"`
		FirstSerial []byte         `cbor:"14,keyasint,omitempty"`
		Charges     []sealedCharge `cbor:"15,keyasint,omitempty"`
		Performed   bool           `cbor:"16,keyasint,omitempty"`
		Reported    int64          `cbor:"17,keyasint,omitempty"`
	}{
		Random: some(k.Serial[4:]), Attempt: k.Attempt, M3: some(k.M3[:]), Result: uint64(k.Outcome.Result), Reason: uint64(k.Outcome.Reason),
		Decision: k.Outcome.Decision.Marshal(), Decided: micros(k.Outcome.At), Asked: askedFields(k.Outcome.Asked),
		Dry: k.Dry, Performed: k.Performed, Reported: micros(k.ReportedAt),
	}
	if k.Pending != nil {
		fields.Pending = &sealedPending{Role: k.Pending.Role, Expires: micros(k.Pending.Expires)}
	}
	if k.Final != nil {
		fields.Final = []int64{int64(k.Final.Result), int64(k.Final.Reason), micros(k.Final.At)}
	}
	if k.First != nil {
		fields.FirstClient, fields.FirstSerial = k.First.Client[:], k.First.Serial[:]
	}
	for _, c := range k.Charges {
		fields.Charges = append(fields.Charges, sealedCharge{
			Service: c.Service, Period: periodOf(c), Start: c.At.Unix(), Currency: c.Currency, Amount: c.Amount,
		})
	}
	return sealed{"decision", serialKey(k.Client, k.Serial), fields}
}

// AnswersKept is longer than any handle lives, so that every M3 that may still be repeated gets the
// same answer. Older answers grant nothing.
const AnswersKept = 48 * time.Hour

// over reports whether the decision grants nothing any more.
func (k Kept) over() bool {
	waits := k.Pending != nil && k.Final == nil
	return !waits && time.Since(k.Outcome.At) > AnswersKept
}

func (b Begun) sealed() sealed {
	return sealed{"attempt", serialKey(b.Client, b.Serial, b.Attempt), struct {
		Random   []byte `cbor:"1,keyasint,omitempty"`
		M3       []byte `cbor:"2,keyasint,omitempty"`
		Answered bool   `cbor:"3,keyasint,omitempty"`
		Left     uint64 `cbor:"4,keyasint,omitempty"`
		At       int64  `cbor:"5,keyasint,omitempty"`
	}{some(b.Serial[4:]), some(b.M3[:]), b.Answered, b.TriesLeft, micros(b.At)}}
}

func (p Policy) sealed() sealed {
	return sealed{"policy", strconv.AppendUint(nil, p.Version, 10), struct {
		Document  []byte `cbor:"1,keyasint,omitempty"`
		Activated int64  `cbor:"2,keyasint,omitempty"`
		Change    []byte `cbor:"3,keyasint,omitempty"`
	}{p.Document, micros(p.ActivatedAt), some(p.Change[:])}}
}

func (k Key) sealed() sealed {
	return sealed{"key", strconv.AppendUint([]byte(k.Name+"@"), k.Version, 10), struct {
		ID          []byte   `cbor:"1,keyasint,omitempty"`
		Public      []byte   `cbor:"2,keyasint,omitempty"`
		NotBefore   int64    `cbor:"3,keyasint,omitempty"`
		NotAfter    int64    `cbor:"4,keyasint,omitempty"`
		Cert        []byte   `cbor:"5,keyasint,omitempty"`
		Created     int64    `cbor:"6,keyasint,omitempty"`
		Root        uint64   `cbor:"7,keyasint,omitempty"`
		Origin      Origin   `cbor:"8,keyasint,omitempty"`
		Tokens      []string `cbor:"9,keyasint,omitempty"`
		Revision    uint64   `cbor:"10,keyasint,omitempty"`
		Activated   int64    `cbor:"11,keyasint,omitempty"`
		Retired     int64    `cbor:"12,keyasint,omitempty"`
		Suspended   int64    `cbor:"13,keyasint,omitempty"`
		Compromised int64    `cbor:"14,keyasint,omitempty"`
		Destroyed   int64    `cbor:"15,keyasint,omitempty"`
		Sealed      []byte   `cbor:"16,keyasint,omitempty"`
		SealedFor   []byte   `cbor:"17,keyasint,omitempty"`
	}{
		some(k.ID[:]), k.Public, micros(k.NotBefore), micros(k.NotAfter), k.Cert, micros(k.CreatedAt),
		k.Root, k.Origin, k.Tokens, k.Revision, micros(k.ActivatedAt), micros(k.RetiredAt), micros(k.SuspendedAt),
		micros(k.CompromisedAt), micros(k.DestroyedAt), k.Sealed, k.SealedFor,
	}}
}

// Setting is a named value of the key registry.
type Setting struct {
	Name  string
	Value []byte
}

func (s Setting) sealed() sealed {
	return sealed{"setting", []byte(s.Name), struct {
		Value []byte `cbor:"1,keyasint,omitempty"`
	}{s.Value}}
}

func (a Admin) sealed() sealed {
	return sealed{"admin", a.ID[:], struct {
		Name    string `cbor:"1,keyasint,omitempty"`
		Key     []byte `cbor:"2,keyasint,omitempty"`
		Status  Status `cbor:"3,keyasint,omitempty"`
		Version uint64 `cbor:"4,keyasint,omitempty"`
		Created int64  `cbor:"5,keyasint,omitempty"`
		Change  []byte `cbor:"6,keyasint,omitempty"`
	}{a.Name, some(a.Key[:]), a.Status, a.Version, micros(a.CreatedAt), some(a.Change[:])}}
}

type sealedSignature struct {
	_         struct{} `cbor:",toarray"`
	Signer    []byte
	Signature []byte
	At        int64
}

func (c Change) sealed() sealed {
	var signatures []sealedSignature
	for _, s := range slices.SortedFunc(slices.Values(c.Signatures), earlierSignature) {
		signatures = append(signatures, sealedSignature{Signer: s.Signer[:], Signature: s.Signature, At: micros(s.At)})
	}
	return sealed{"change", c.ID[:], struct {
		Document   []byte            `cbor:"1,keyasint,omitempty"`
		State      ChangeState       `cbor:"2,keyasint,omitempty"`
		Reason     string            `cbor:"3,keyasint,omitempty"`
		Created    int64             `cbor:"4,keyasint,omitempty"`
		Expires    int64             `cbor:"5,keyasint,omitempty"`
		Ended      int64             `cbor:"6,keyasint,omitempty"`
		Required   int               `cbor:"7,keyasint,omitempty"`
		Signed     []string          `cbor:"8,keyasint,omitempty"`
		Signatures []sealedSignature `cbor:"9,keyasint,omitempty"`
	}{
		c.Document, c.State, c.Reason, micros(c.CreatedAt), micros(c.ExpiresAt), micros(c.EndedAt), c.Required, c.Signed, signatures,
	}}
}

func earlierSignature(a, b ChangeSignature) int {
	return cmp.Or(cmp.Compare(micros(a.At), micros(b.At)), bytes.Compare(a.Signer[:], b.Signer[:]))
}

// some returns nil for a value of all zeros, which is then left out.
func some(b []byte) []byte {
	for _, c := range b {
		if c != 0 {
			return b
		}
	}
	return nil
}

func optionalKey(key *protocol.PublicKey) []byte {
	if key == nil {
		return nil
	}
	return key[:]
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func allMicros(times []time.Time) (us []int64) {
	for _, t := range times {
		us = append(us, t.UnixMicro())
	}
	return us
}

// HeadRecord is a record of the table head, which package head marshals: the head itself, or the
// set of open invitations.
type HeadRecord struct {
	Name string
	Body []byte
}

func (r HeadRecord) sealed() sealed {
	return sealed{table: "head", key: []byte(r.Name), fields: struct {
		Body []byte `cbor:"1,keyasint"`
	}{r.Body}}
}
