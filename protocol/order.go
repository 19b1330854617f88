package protocol

import (
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// LinkClass says by what near-field link D hears C; it is D's claim.
type LinkClass uint8

// The link classes of PROTOCOL.md §5.
const (
	LinkWire  LinkClass = 1
	LinkQR    LinkClass = 2
	LinkSound LinkClass = 3
	LinkNFC   LinkClass = 4
	LinkBLE   LinkClass = 5
)

var linkNames = []string{LinkWire: "wire", LinkQR: "qr", LinkSound: "sound", LinkNFC: "nfc", LinkBLE: "ble"}

func (l LinkClass) known() bool { return l >= LinkWire && l <= LinkBLE }

func (l LinkClass) String() string {
	if !l.known() {
		return "unknown link"
	}
	return linkNames[l]
}

// ParseLinkClass reads the name that String writes.
func ParseLinkClass(s string) (LinkClass, error) {
	if i := slices.Index(linkNames, s); i >= int(LinkWire) {
		return LinkClass(i), nil
	}
	return 0, formatError("link class %q", s)
}

// Order is what D has to sell or to open, key 2 of an [ApplyRequest]:
// {1: service or [service, …], ?2: [amount, currency], ?3: text, ?4: reference}.
type Order struct {
	Services  []Service // one: an order; several: those D accepts without one
	Amount    *Amount
	Text      string // up to 44 bytes, shown to the user
	Reference string // up to 64 bytes, D's own, for S's audit record
}

// MaxReferenceBytes is the longest order reference.
const MaxReferenceBytes = 64

// maxServices is the longest list of services in an order.
const maxServices = 256

type wireOrder struct {
	Services  cbor.RawMessage `cbor:"1,keyasint"`
	Amount    *Amount         `cbor:"2,keyasint,omitempty"`
	Text      *string         `cbor:"3,keyasint,omitempty"`
	Reference *string         `cbor:"4,keyasint,omitempty"`
}

func (o Order) marshal() []byte {
	w := wireOrder{Services: marshal(o.Services), Amount: o.Amount, Text: nonEmpty(o.Text), Reference: nonEmpty(o.Reference)}
	if len(o.Services) == 1 {
		w.Services = marshal(o.Services[0])
	}
	return marshal(w)
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func parseOrder(b []byte) (o Order, err error) {
	var w wireOrder
	if err := unmarshalExact(b, &w, 1, 2, 3, 4); err != nil {
		return o, err
	}
	if o.Services, err = parseServices(w.Services); err != nil {
		return o, err
	}
	if o.Amount = w.Amount; o.Amount != nil {
		if err := o.Amount.validate(); err != nil {
			return o, err
		}
	}
	if o.Text, err = parseOptionalText("order text", w.Text, MaxTextBytes); err != nil {
		return o, err
	}
	o.Reference, err = parseOptionalText("order reference", w.Reference, MaxReferenceBytes)
	return o, err
}

// parseServices reads one service, or a list of two or more without repeats. A
// list of one would be a second way to write the same.
func parseServices(b []byte) ([]Service, error) {
	var one Service
	if unmarshalSame(b, &one) == nil {
		return []Service{one}, nil
	}
	var list []Service
	if err := unmarshalSame(b, &list); err != nil {
		return nil, err
	}
	if len(list) < 2 || len(list) > maxServices {
		return nil, formatError("order lists %d services", len(list))
	}
	sorted := slices.Sorted(slices.Values(list))
	if len(slices.Compact(sorted)) != len(list) {
		return nil, formatError("order lists a service twice")
	}
	return list, nil
}

func parseOptionalText(name string, s *string, maxBytes int) (string, error) {
	if s == nil {
		return "", nil
	}
	if *s == "" {
		return "", formatError("%s is empty", name)
	}
	return *s, CheckText(*s, maxBytes)
}
