package protocol_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/derive"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
)

func fullApply() deviceapi.ApplyRequest {
	return deviceapi.ApplyRequest{
		M1: []byte{0x11}, Link: deviceapi.LinkNFC, Floor: 2, Handle: []byte{1}, Nonce: protocol.Nonce{7}, Strict: true,
		Order: deviceapi.Order{Services: []protocol.Service{16, 1027}, Amount: &protocol.Amount{Minor: 1, Currency: "EUR"}, Text: "Order 1", Reference: "R-1"},
	}
}

func TestBodies(t *testing.T) {
	checkBody(t, deviceapi.ParseApplyRequest, fullApply())
	checkBody(t, deviceapi.ParseApplyRequest, deviceapi.ApplyRequest{M1: []byte{0x11}, Link: deviceapi.LinkWire, Order: deviceapi.Order{Services: []protocol.Service{16}}})
	checkBody(t, deviceapi.ParseApplyResponse, deviceapi.ApplyResponse{M2: []byte{0x21}, Handle: []byte{1}, Level: 3, TTL: 90})
	checkBody(t, deviceapi.ParseApplyResponse, deviceapi.ApplyResponse{M2: []byte{0x51}})
	checkBody(t, deviceapi.ParseCountersignRequest, deviceapi.CountersignRequest{Handle: []byte{1}, M3: []byte{0x31}})
	checkBody(t, deviceapi.ParseCountersignResponse, deviceapi.CountersignResponse{M4: []byte{0x41}, Result: protocol.ResultRetry})
	checkBody(t, deviceapi.ParseCountersignResponse, deviceapi.CountersignResponse{
		M4: []byte{0x41}, Result: protocol.ResultPending, Decision: []byte{2}, NextHandle: []byte{3},
	})
	checkBody(t, deviceapi.ParseOutcomeRequest, deviceapi.OutcomeRequest{Transaction: protocol.TransactionID{1}, Performed: true})
	checkBody(t, deviceapi.ParseOutcomeRequest, deviceapi.OutcomeRequest{Transaction: protocol.TransactionID{1}})
}

func checkBody[T interface{ Marshal() []byte }](t *testing.T, parse func([]byte) (T, error), want T) {
	t.Helper()
	if got, err := parse(want.Marshal()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestApplyRequestRefuses(t *testing.T) {
	type m = map[int]any
	order := func() m { return m{1: 16} }
	body := func(change func(b, o m)) []byte {
		o := order()
		b := m{1: []byte{0x11}, 2: o, 3: 1, 6: make([]byte, 16)}
		change(b, o)
		return cbor.Marshal(b)
	}
	if _, err := deviceapi.ParseApplyRequest(body(func(b, o m) { b[64], o[64] = "new", "new" })); err != nil {
		t.Errorf("keys from 64 are ignored: got %v", err)
	}
	for name, change := range map[string]func(b, o m){
		"unknown key":          func(b, _ m) { b[8] = 1 },
		"unknown key in order": func(_, o m) { o[5] = 1 },
		"negative key":         func(b, _ m) { b[-1] = 1 },
		"no M1":                func(b, _ m) { delete(b, 1) },
		"M1 null":              func(b, _ m) { b[1] = nil },
		"M1 too long":          func(b, _ m) { b[1] = make([]byte, message.MaxFrame+1) },
		"no order":             func(b, _ m) { delete(b, 2) },
		"order null":           func(b, _ m) { b[2] = nil },
		"link class 6":         func(b, _ m) { b[3] = 6 },
		"floor 0":              func(b, _ m) { b[4] = 0 },
		"floor 5":              func(b, _ m) { b[4] = 5 },
		"empty handle":         func(b, _ m) { b[5] = []byte{} },
		"handle null":          func(b, _ m) { b[5] = nil },
		"long handle":          func(b, _ m) { b[5] = make([]byte, deviceapi.MaxHandle+1) },
		"nonce of 15 bytes":    func(b, _ m) { b[6] = make([]byte, 15) },
		"strict 0":             func(b, _ m) { b[7] = 0 },
		"no service":           func(_, o m) { delete(o, 1) },
		"no services":          func(_, o m) { o[1] = []int{} },
		"list of one":          func(_, o m) { o[1] = []int{16} },
		"service twice":        func(_, o m) { o[1] = []int{16, 17, 16} },
		"service null":         func(_, o m) { o[1] = nil },
		"negative service":     func(_, o m) { o[1] = -1 },
		"currency":             func(_, o m) { o[2] = []any{1, "eur"} },
		"amount 10^15":         func(_, o m) { o[2] = []any{uint64(protocol.MaxMinor + 1), "EUR"} },
		"empty text":           func(_, o m) { o[3] = "" },
		"control character":    func(_, o m) { o[3] = "a\nb" },
		"text of 45 bytes":     func(_, o m) { o[3] = string(bytes.Repeat([]byte("a"), 45)) },
	} {
		if _, err := deviceapi.ParseApplyRequest(body(change)); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("%s: got %v, want a format error", name, err)
		}
	}
}

func TestAnswersRefuse(t *testing.T) {
	type m = map[int]any
	for _, b := range []m{{}, {1: []byte{}}, {1: []byte{1}, 2: []byte{1}}, {1: []byte{1}, 2: []byte{1}, 3: 5, 4: 1}, {1: []byte{1}, 3: 1, 4: 1}} {
		if _, err := deviceapi.ParseApplyResponse(cbor.Marshal(b)); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("apply answer %v: got %v, want a format error", b, err)
		}
	}
	for _, b := range []m{{1: []byte{1}}, {1: []byte{1}, 2: 4}, {1: []byte{1}, 2: 1, 3: []byte{}}, {1: []byte{1}, 2: 1, 4: nil}} {
		if _, err := deviceapi.ParseCountersignResponse(cbor.Marshal(b)); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("countersign answer %v: got %v, want a format error", b, err)
		}
	}
	for _, b := range []m{{1: make([]byte, 8)}, {1: make([]byte, 8), 2: 2}, {1: make([]byte, 7), 2: 1}} {
		if _, err := deviceapi.ParseOutcomeRequest(cbor.Marshal(b)); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("outcome %v: got %v, want a format error", b, err)
		}
	}
}

func TestLinkClassNames(t *testing.T) {
	for l := deviceapi.LinkWire; l <= deviceapi.LinkBLE; l++ {
		if got, err := deviceapi.ParseLinkClass(l.String()); got != l || err != nil {
			t.Errorf("%v parses as %v, %v", l, got, err)
		}
	}
	for _, s := range []string{"", "lora"} {
		if _, err := deviceapi.ParseLinkClass(s); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("%q: got %v, want a format error", s, err)
		}
	}
}

func TestFrames(t *testing.T) {
	var link bytes.Buffer
	messages := [][]byte{{0x11}, bytes.Repeat([]byte{0x31}, message.MaxFrame)}
	for _, m := range messages {
		if err := message.WriteFrame(&link, m); err != nil {
			t.Fatal(err)
		}
	}
	if got := link.Bytes()[:3]; !bytes.Equal(got, []byte{0, 1, 0x11}) {
		t.Errorf("first frame is %x, want 000111", got)
	}
	for _, want := range messages {
		if got, err := message.ReadFrame(&link); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v, want %d", len(got), err, len(want))
		}
	}
	for in, want := range map[string]error{
		"": io.EOF, "\x00": io.ErrUnexpectedEOF, "\x00\x02": io.ErrUnexpectedEOF, "\x00\x02a": io.ErrUnexpectedEOF,
		"\x00\x00": protocol.CodeFormat, "\x08\x01": protocol.CodeFormat,
	} {
		if _, err := message.ReadFrame(bytes.NewReader([]byte(in))); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", in, err, want)
		}
	}
	for _, n := range []int{0, message.MaxFrame + 1} {
		if err := message.WriteFrame(&link, make([]byte, n)); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("message of %d bytes: got %v, want a format error", n, err)
		}
	}
}

func TestProblem(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		want   error
	}{
		{fmt.Errorf("row 12 of table x: %w", protocol.CodeFormat), http.StatusBadRequest, protocol.CodeFormat},
		{protocol.Retry{protocol.CodeBusy, 1500 * time.Millisecond}, http.StatusTooManyRequests, protocol.Retry{protocol.CodeBusy, 2 * time.Second}},
		{protocol.CodeExpired, http.StatusGone, protocol.CodeExpired},
		{protocol.CodeDevice, http.StatusForbidden, protocol.CodeDevice},
		{protocol.CodeHSM, http.StatusServiceUnavailable, protocol.CodeHSM},
		{errors.New("disk"), http.StatusInternalServerError, nil},
	} {
		p := deviceapi.ProblemOf(c.err)
		if p.Status != c.status || p.Detail != "" || p.Title == "" {
			t.Errorf("%v: problem %+v, want status %d and no detail", c.err, p, c.status)
		}
		if got := p.Err(); got != c.want {
			t.Errorf("%v comes back as %v, want %v", c.err, got, c.want)
		}
	}
	if p, err := deviceapi.ParseProblem([]byte(`{"code":16,"retry":3,"instance":"/x"}`)); err != nil || p.Code != protocol.CodeBusy || p.Retry != 3 {
		t.Errorf("got %+v, %v, want code 16 and retry 3", p, err)
	}
	if _, err := deviceapi.ParseProblem([]byte(`502`)); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("no object: got %v, want a format error", err)
	}
}

func TestRecordInput(t *testing.T) {
	r := derive.Record{Kind: "client", Client: protocol.ClientID{1}, SigningKey: protocol.PublicKey{2}, Status: 1, Roles: []string{"approver"}, Version: 3}
	got := derive.RecordInput(r)
	want := "4f4131207265636f7264207631" + "88" + "66636c69656e74" + "480100000000000000" +
		"582102" + fmt.Sprintf("%064x", 0) + "40" + "40" + "01" + "81" + "68617070726f766572" + "03"
	if fmt.Sprintf("%x", got) != want {
		t.Errorf("record input is\n%x, want\n%s", got, want)
	}
	bare := r
	bare.Roles, bare.Verifier = nil, []byte{}
	none := bare
	none.Roles, none.Verifier = []string{}, nil
	if !bytes.Equal(derive.RecordInput(bare), derive.RecordInput(none)) {
		t.Error("nil and empty are not the same")
	}
}
