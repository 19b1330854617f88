package protocol_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
)

func TestAcceptable(t *testing.T) {
	retry, huge := uint64(5), uint64(1)<<63
	good := newSession(t, 2).payload2()
	beyond := good
	beyond.Level = 5
	for name, c := range map[string]struct {
		p2   message.P2
		want message.Expectation
		err  error
	}{
		"no floor":           {p2: good, want: message.Expectation{Service: 1027}},
		"level of nobody":    {p2: beyond, want: message.Expectation{Service: 1027}, err: protocol.CodeLevel},
		"error":              {p2: message.P2{Code: protocol.CodeService}, err: protocol.CodeService},
		"error with retry":   {p2: message.P2{Code: protocol.CodeLocked, Retry: &retry}, err: protocol.Retry{protocol.CodeLocked, 5 * time.Second}},
		"retry of centuries": {p2: message.P2{Code: protocol.CodeLocked, Retry: &huge}, err: protocol.Retry{protocol.CodeLocked, 9_223_372_036 * time.Second}},
	} {
		if err := c.p2.Acceptable(c.want); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", name, err, c.err)
		}
	}
	seen := protocol.Service(0)
	first := protocol.Service(1027)
	approver := good
	approver.FirstStatement, approver.FirstService = new([32]byte), &first
	floor := func(s protocol.Service) protocol.Level { seen = s; return 2 }
	if err := approver.Acceptable(message.Expectation{Service: protocol.ServiceCoApproval, Floor: floor}); err != nil || seen != first {
		t.Errorf("co-approval: %v, floor of service %v, want %v", err, seen, first)
	}
}

func TestMinorDigits(t *testing.T) {
	for currency, want := range map[string]int{"EUR": 2, "JPY": 0, "KWD": 3} {
		if got, known := protocol.MinorDigits(currency); got != want || !known {
			t.Errorf("%s has %d digits, known %v", currency, got, known)
		}
	}
	for _, currency := range []string{"XXX", "XTS", "QQQ", "", "eur"} {
		if _, known := protocol.MinorDigits(currency); known {
			t.Errorf("%q is known", currency)
		}
	}
}

func TestCodes(t *testing.T) {
	codes := protocol.Codes()
	if !slices.IsSorted(codes) || codes[0] != protocol.CodeFormat || !slices.Contains(codes, protocol.CodeLinkBusy) {
		t.Errorf("codes %d", codes)
	}
}

func TestDecimal(t *testing.T) {
	for want, a := range map[string]protocol.Amount{
		"60.00 EUR": {Minor: 6000, Currency: "EUR"}, "0.05 EUR": {Minor: 5, Currency: "EUR"}, "5 JPY": {Minor: 5, Currency: "JPY"},
		"0.001 KWD": {Minor: 1, Currency: "KWD"}, "7 XXX (minor units)": {Minor: 7, Currency: "XXX"},
	} {
		if got := a.Decimal(); got != want {
			t.Errorf("%v: %q, want %q", a, got, want)
		}
	}
}

// TestLeftOut encodes optional keys with the value that their absence means.
func TestLeftOut(t *testing.T) {
	s := newSession(t, 1)
	p1 := func(key byte, item ...byte) []byte {
		b := append(append(bytes.Clone(s.p1), key), item...)
		b[0]++
		return b
	}
	for name, err := range map[string]error{
		"capabilities 0":  second(message.ParseP1(p1(7, 0))),
		"proposal [\"\"]": second(message.ParseP1(p1(5, 0x81, 0x60))),
		"proposal null":   second(message.ParseP1(p1(5, 0xF6))),
		"P2 code 0":       second(message.ParseP2([]byte{0xA1, 0, 0})),
		"P2 code 256":     second(message.ParseP2([]byte{0xA1, 0, 0x19, 1, 0})),
		"P4 [1, 18]":      second(message.ParseP4([]byte{0xA3, 1, 1, 2, 0, 5, 0x82, 1, 18})),
	} {
		if code, _ := protocol.CodeOf(err); code != protocol.CodeFormat {
			t.Errorf("%s: got %v, want code 1", name, err)
		}
	}
	if _, err := message.ParseP1(p1(7, 1)); err != nil {
		t.Errorf("capabilities 1: %v", err)
	}
	refusal := message.P3{Verdict: protocol.Refuse, Slot: protocol.SlotSigning}
	if _, err := message.ParseP3(refusal.Marshal()); err != nil {
		t.Errorf("refusal: %v", err)
	}
	refusal.Proof = make([]byte, message.ProofSize)
	if err := second(message.ParseP3(refusal.Marshal())); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("refusal with a proof: %v", err)
	}
}

func TestSecretDoesNotMarshal(t *testing.T) {
	got, err := json.Marshal(message.Channel{PRK: message.Secret{0xAB}}.PRK)
	if err != nil || string(got) != `"[redacted]"` {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestValues(t *testing.T) {
	for got, want := range map[string]string{
		fmt.Sprint(message.Secret{1}): "[redacted]", fmt.Sprintf("%#v", message.Secret{1}): "[redacted]",
		fmt.Sprintf("%+v", message.Channel{PRK: message.Secret{0xAB}}.PRK): "[redacted]",
		protocol.Factors(7).String():                                       "signature+password+uv", protocol.Factors(0).String(): "",
		protocol.ResultPending.String(): "pending", protocol.Result(9).String(): "result 9",
		protocol.Refuse.String(): "refuse", protocol.Verdict(4).String(): "verdict 4",
		protocol.Level(3).String(): "3", protocol.Service(1027).String(): "1027",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if s, err := protocol.ParseService("1027"); err != nil || s != 1027 {
		t.Errorf("service %v, %v", s, err)
	}
	if l, err := protocol.ParseLevel("4"); err != nil || l != 4 {
		t.Errorf("level %v, %v", l, err)
	}
	for _, bad := range []string{"", "0", "5", "11", "x"} {
		if _, err := protocol.ParseLevel(bad); err == nil {
			t.Errorf("level %q parses", bad)
		}
	}
	if _, err := protocol.ParseService("-1"); err == nil {
		t.Error("service -1 parses")
	}
}
