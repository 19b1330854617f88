package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestAcceptable(t *testing.T) {
	retry, huge := uint64(5), uint64(1)<<63
	good := newSession(t, 2).payload2()
	beyond := good
	beyond.Level = 5
	for name, c := range map[string]struct {
		p2   P2
		want Expectation
		err  error
	}{
		"no floor":           {p2: good, want: Expectation{Service: 1027}},
		"level of nobody":    {p2: beyond, want: Expectation{Service: 1027}, err: CodeLevel},
		"error":              {p2: P2{Code: CodeService}, err: CodeService},
		"error with retry":   {p2: P2{Code: CodeLocked, Retry: &retry}, err: Retry{CodeLocked, 5 * time.Second}},
		"retry of centuries": {p2: P2{Code: CodeLocked, Retry: &huge}, err: Retry{CodeLocked, 9_223_372_036 * time.Second}},
	} {
		if err := c.p2.Acceptable(c.want); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", name, err, c.err)
		}
	}
	seen := Service(0)
	first := Service(1027)
	approver := good
	approver.FirstStatement, approver.FirstService = new([32]byte), &first
	floor := func(s Service) Level { seen = s; return 2 }
	if err := approver.Acceptable(Expectation{Service: ServiceCoApproval, Floor: floor}); err != nil || seen != first {
		t.Errorf("co-approval: %v, floor of service %v, want %v", err, seen, first)
	}
}

func TestMinorDigits(t *testing.T) {
	for currency, want := range map[string]int{"EUR": 2, "JPY": 0, "KWD": 3} {
		if got, known := MinorDigits(currency); got != want || !known {
			t.Errorf("%s has %d digits, known %v", currency, got, known)
		}
	}
	for _, currency := range []string{"XXX", "XTS", "QQQ", "", "eur"} {
		if _, known := MinorDigits(currency); known {
			t.Errorf("%q is known", currency)
		}
	}
}

// TestLeftOut has optional keys written with the value that their absence means.
func TestLeftOut(t *testing.T) {
	s := newSession(t, 1)
	p1 := func(key byte, item ...byte) []byte {
		b := append(append(bytes.Clone(s.p1), key), item...)
		b[0]++
		return b
	}
	for name, err := range map[string]error{
		"capabilities 0":  second(ParseP1(p1(7, 0))),
		"proposal [\"\"]": second(ParseP1(p1(5, 0x81, 0x60))),
		"proposal null":   second(ParseP1(p1(5, 0xF6))),
		"P2 code 0":       second(ParseP2([]byte{0xA1, 0, 0})),
		"P2 code 256":     second(ParseP2([]byte{0xA1, 0, 0x19, 1, 0})),
		"P4 [1, 18]":      second(ParseP4([]byte{0xA3, 1, 1, 2, 0, 5, 0x82, 1, 18})),
	} {
		if code, _ := CodeOf(err); code != CodeFormat {
			t.Errorf("%s: got %v, want code 1", name, err)
		}
	}
	if _, err := ParseP1(p1(7, 1)); err != nil {
		t.Errorf("capabilities 1: %v", err)
	}
	refusal := P3{Verdict: Refuse, Slot: SlotSigning}
	if _, err := ParseP3(refusal.Marshal()); err != nil {
		t.Errorf("refusal: %v", err)
	}
	refusal.Proof = make([]byte, ProofSize)
	if err := second(ParseP3(refusal.Marshal())); !errors.Is(err, CodeFormat) {
		t.Errorf("refusal with a proof: %v", err)
	}
}

func TestSecretDoesNotMarshal(t *testing.T) {
	got, err := json.Marshal(Channel{PRK: Secret{0xAB}}.PRK)
	if err != nil || string(got) != `"[redacted]"` {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestValues(t *testing.T) {
	for got, want := range map[string]string{
		fmt.Sprint(Secret{1}): "[redacted]", fmt.Sprintf("%#v", Secret{1}): "[redacted]",
		fmt.Sprintf("%+v", Channel{PRK: Secret{0xAB}}.PRK): "[redacted]",
		Factors(7).String(): "signature+password+uv", Factors(0).String(): "",
		ResultPending.String(): "pending", Result(9).String(): "result 9",
		Refuse.String(): "refuse", Verdict(4).String(): "verdict 4",
		Level(3).String(): "3", Service(1027).String(): "1027",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if s, err := ParseService("1027"); err != nil || s != 1027 {
		t.Errorf("service %v, %v", s, err)
	}
	if l, err := ParseLevel("4"); err != nil || l != 4 {
		t.Errorf("level %v, %v", l, err)
	}
	for _, bad := range []string{"", "0", "5", "11", "x"} {
		if _, err := ParseLevel(bad); err == nil {
			t.Errorf("level %q parses", bad)
		}
	}
	if _, err := ParseService("-1"); err == nil {
		t.Error("service -1 parses")
	}
}
