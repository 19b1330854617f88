package protocol

import "github.com/fxamacker/cbor/v2"

// BodyType is the media type of the CBOR bodies of PROTOCOL.md §5.
const BodyType = "application/cbor"

// MaxHandle is the longest handle, in bytes, PROTOCOL.md §3.2.
const MaxHandle = 1024

// ApplyRequest is the body of POST /v1/apply:
// {1: M1, 2: order, 3: link class, ?4: floor, ?5: handle, 6: nonce, ?7: strict}.
type ApplyRequest struct {
	M1     []byte
	Order  Order
	Link   LinkClass
	Floor  Level  // 0: none
	Handle []byte // of the pending first countersign, for a co-approval; nil: none
	Nonce  Nonce
	Strict bool
}

type wireApply struct {
	M1     []byte          `cbor:"1,keyasint"`
	Order  cbor.RawMessage `cbor:"2,keyasint"`
	Link   LinkClass       `cbor:"3,keyasint"`
	Floor  *Level          `cbor:"4,keyasint,omitempty"`
	Handle *[]byte         `cbor:"5,keyasint,omitempty"`
	Nonce  Nonce           `cbor:"6,keyasint"`
	Strict *uint64         `cbor:"7,keyasint,omitempty"`
}

// Marshal writes the body.
func (r ApplyRequest) Marshal() []byte {
	w := wireApply{M1: present(r.M1), Order: r.Order.marshal(), Link: r.Link, Nonce: r.Nonce, Handle: optionalBytes(r.Handle)}
	if r.Floor != 0 {
		w.Floor = &r.Floor
	}
	if r.Strict {
		w.Strict = new(uint64)
		*w.Strict = 1
	}
	return marshal(w)
}

func optionalBytes(b []byte) *[]byte {
	if b == nil {
		return nil
	}
	return &b
}

// ParseApplyRequest reads the body: CodeFormat. M1 is not looked into.
func ParseApplyRequest(b []byte) (ApplyRequest, error) {
	var w wireApply
	if err := unmarshalExact(b, &w, 1, 2, 3, 4, 5, 6, 7); err != nil {
		return ApplyRequest{}, err
	}
	order, err := parseOrder(w.Order)
	if err != nil {
		return ApplyRequest{}, err
	}
	r := ApplyRequest{M1: w.M1, Order: order, Link: w.Link, Nonce: w.Nonce, Strict: w.Strict != nil}
	if !r.Link.known() || r.Strict && *w.Strict != 1 {
		return ApplyRequest{}, formatError("apply: link class or strict has no such value")
	}
	if w.Floor != nil {
		if r.Floor = *w.Floor; !isLevel(r.Floor) {
			return ApplyRequest{}, formatError("apply: floor %d", r.Floor)
		}
	}
	if w.Handle != nil {
		r.Handle = *w.Handle
	}
	return r, checkLengths(carried{"M1", r.M1, MaxFrame, false}, carried{"handle", r.Handle, MaxHandle, w.Handle == nil})
}

// carried is a byte string inside a body.
type carried struct {
	name     string
	value    []byte
	most     int
	optional bool
}

func checkLengths(list ...carried) error {
	for _, c := range list {
		if len(c.value) > c.most || len(c.value) == 0 && !c.optional {
			return formatError("%s of %d bytes: want 1 to %d", c.name, len(c.value), c.most)
		}
	}
	return nil
}

func isLevel(l Level) bool { _, ok := l.Factors(); return ok }

// ApplyResponse answers it: {1: M2, 2: handle, 3: level, 4: ttl}, or {1} alone where
// M2 is an MU or of the error form; then Handle is nil.
type ApplyResponse struct {
	M2     []byte
	Handle []byte
	Level  Level
	TTL    uint64 // seconds
}

type wireApplyAnswer struct {
	M2     []byte  `cbor:"1,keyasint"`
	Handle *[]byte `cbor:"2,keyasint,omitempty"`
	Level  *Level  `cbor:"3,keyasint,omitempty"`
	TTL    *uint64 `cbor:"4,keyasint,omitempty"`
}

// Marshal writes the body.
func (r ApplyResponse) Marshal() []byte {
	w := wireApplyAnswer{M2: present(r.M2)}
	if r.Handle != nil {
		w.Handle, w.Level, w.TTL = &r.Handle, &r.Level, &r.TTL
	}
	return marshal(w)
}

// ParseApplyResponse reads the body: CodeFormat.
func ParseApplyResponse(b []byte) (ApplyResponse, error) {
	var w wireApplyAnswer
	if err := unmarshalExact(b, &w, 1, 2, 3, 4); err != nil {
		return ApplyResponse{}, err
	}
	r := ApplyResponse{M2: w.M2}
	if w.Handle == nil && w.Level == nil && w.TTL == nil {
		return r, checkLengths(carried{"M2", r.M2, MaxFrame, false})
	}
	if w.Handle == nil || w.Level == nil || w.TTL == nil || !isLevel(*w.Level) {
		return ApplyResponse{}, formatError("apply answer: handle, level and ttl come together")
	}
	r.Handle, r.Level, r.TTL = *w.Handle, *w.Level, *w.TTL
	return r, checkLengths(carried{"M2", r.M2, MaxFrame, false}, carried{"handle", r.Handle, MaxHandle, false})
}
