package client

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/clienttest"
)

func TestSecondApprover(t *testing.T) {
	for name, tc := range map[string]struct {
		verdict protocol.Verdict
		result  protocol.Result
		reason  protocol.Code
	}{
		"approves": {protocol.Approve, protocol.ResultApproved, 0},
		"refuses":  {protocol.Refuse, protocol.ResultDenied, protocol.CodeUserRefused},
	} {
		t.Run(name, func(t *testing.T) {
			a := clienttest.New(t)
			a.Do(clienttest.Behaviour{Decide: true})
			p := &typist{types: []string{right, right}}
			first, _ := levelClient(t, a, p)
			second, _ := levelClient(t, a, p)
			link := clienttest.Dial(t, a.Listen("tcp"))
			hundred := &protocol.Amount{Minor: 10000, Currency: "EUR"}
			co := Request{Service: protocol.ServiceCoApproval, Receipt: true}
			if _, err := second.Authorize(t.Context(), link, co, nobody(t)); !errors.Is(err, protocol.CodeService) {
				t.Errorf("nothing waits: %v", err)
			}
			r, err := first.Authorize(t.Context(), link, Request{Service: 300, Level: 4, Amount: hundred, Text: "Boat"}, says(protocol.Approve))
			if err != nil || r.Result != protocol.ResultPending || r.Reason != protocol.CodePending || r.Approved() || r.Final() {
				t.Fatalf("first: %+v, %v", r, err)
			}
			if r, err = first.Settle(t.Context(), link, r.Serial, says(protocol.Approve)); err != nil || r.Result != protocol.ResultPending {
				t.Errorf("still pending: %+v, %v", r, err)
			}
			var shown Shown
			other, err := second.Authorize(t.Context(), link, co, approverFunc(func(_ context.Context, s Shown) (protocol.Verdict, error) {
				shown = s
				return tc.verdict, nil
			}))
			if err != nil || other.Result != tc.result || *other.Approves != 300 || tc.verdict == protocol.Approve && !other.Verified {
				t.Fatalf("second: %+v, %v", other, err)
			}
			if shown.Approves == nil || *shown.Approves != 300 || shown.ApprovesName != "service 300" || *shown.Amount != *hundred || shown.Text != "Boat" {
				t.Errorf("shown: %+v", shown)
			}
			if r, err = first.Settle(t.Context(), link, r.Serial, says(protocol.Approve)); err != nil || !r.Final() || r.Result != tc.result || r.Reason != tc.reason {
				t.Errorf("settled: %+v, %v", r, err)
			}
			if stored, err := first.Receipt(r.Serial); err != nil || stored.Result != tc.result || stored.Service != 300 {
				t.Errorf("stored: %+v, %v", stored, err)
			}
		})
	}
}

// TestSecondApproverFloor applies the floor of the first client's service.
func TestSecondApproverFloor(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	signed := protocol.FactorSignature | protocol.FactorSecondApprover
	for service, want := range map[protocol.Service]protocol.Code{300: protocol.CodeLevel, 2: protocol.CodeFormat} {
		a.Do(clienttest.Behaviour{P2: message.P2{Factors: signed}, FirstService: service})
		if r, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve)); err != nil || r.Result != protocol.ResultPending {
			t.Fatalf("%+v, %v", r, err)
		}
		_, err := c.Authorize(t.Context(), link, Request{Service: protocol.ServiceCoApproval}, nobody(t))
		if got, _ := protocol.CodeOf(err); got != want {
			t.Errorf("service %v: %v, want %v", service, err, want)
		}
	}
}

func TestSettle(t *testing.T) {
	for name, tc := range map[string]struct {
		lose bool // M3, not its answer
		want protocol.Result
		acts int
	}{"M4 lost": {want: protocol.ResultApproved, acts: 1}, "M3 lost": {lose: true, want: protocol.ResultDenied}} {
		t.Run(name, func(t *testing.T) {
			a := clienttest.New(t)
			c, dir, address := left(t, a, tc.lose)
			a.Do(clienttest.Behaviour{})
			c = reopen(t, c, dir)
			serial, err := c.Last()
			if err != nil {
				t.Fatal(err)
			}
			var shown Shown
			r, err := c.Settle(t.Context(), clienttest.Dial(t, address), serial, approverFunc(func(_ context.Context, s Shown) (protocol.Verdict, error) {
				shown = s
				return protocol.Approve, nil
			}))
			if err != nil || !r.Final() || r.Result != tc.want || r.Serial != serial || *shown.Asked != serial {
				t.Fatalf("%+v, %v, shown %+v", r, err, shown)
			}
			if _, err := c.Resume(t.Context(), nil); !errors.Is(err, ErrNothingPending) {
				t.Errorf("resumed: %v", err)
			}
			if r.Settled() != (tc.want == protocol.ResultDenied) {
				t.Errorf("settled %t before the device has reported: %+v", r.Settled(), r)
			}
			if tc.want == protocol.ResultApproved {
				return
			}
			if again, err := c.Settle(t.Context(), nil, serial, nobody(t)); err != nil || again.Result != tc.want {
				t.Errorf("asked again: %+v, %v", again, err)
			}
			if list, err := c.Receipts(); err != nil || len(list) != 1 || len(a.Acts()) != tc.acts {
				t.Errorf("receipts %v, %v, acts %v", list, err, a.Acts())
			}
			if _, err := c.Settle(t.Context(), nil, protocol.NewSerial(9, [8]byte{}), nobody(t)); !errors.Is(err, ErrNoReceipt) {
				t.Errorf("a serial of nobody: %v", err)
			}
		})
	}
}

// TestSettlePerformed asks about an approval until the device has reported its act, and then no more.
func TestSettlePerformed(t *testing.T) {
	for _, performed := range []bool{true, false} {
		a := clienttest.New(t)
		c, dir := enrolledClient(t, a)
		link := clienttest.Dial(t, a.Listen("tcp"))
		r, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve))
		if err != nil || !r.Approved() || r.Performed != nil || r.Settled() {
			t.Fatalf("%+v, %v", r, err)
		}
		serial := r.Serial
		if r, err = c.Settle(t.Context(), link, serial, says(protocol.Approve)); err != nil || !r.Approved() || r.Performed != nil {
			t.Errorf("before the report: %+v, %v", r, err)
		}
		a.Do(clienttest.Behaviour{Performed: &performed})
		if r, err = c.Settle(t.Context(), link, serial, says(protocol.Approve)); err != nil || !r.Approved() || r.Performed == nil || *r.Performed != performed {
			t.Errorf("performed %t: %+v, %v", performed, r, err)
		}
		c = reopen(t, c, dir)
		if r, err = c.Settle(t.Context(), nil, serial, nobody(t)); err != nil || !r.Settled() || *r.Performed != performed {
			t.Errorf("asked again: %+v, %v", r, err)
		}
	}
}

// TestSettleContradicted: an approval stays one when the appliance no longer knows it.
func TestSettleContradicted(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	r, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve))
	if err != nil {
		t.Fatal(err)
	}
	r.Serial[11] ^= 1 // of a serial that was never approved
	r.Statement, err = restated(r.Statement, r.Serial)
	if err == nil {
		err = c.storeReceipt(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Settle(t.Context(), link, r.Serial, says(protocol.Approve))
	if !errors.Is(err, ErrContradicted) || !again.Approved() {
		t.Errorf("%+v, %v", again, err)
	}
	if kept, err := c.Receipt(r.Serial); err != nil || !kept.Approved() {
		t.Errorf("kept %+v, %v", kept, err)
	}
}

// restated returns a statement with another serial.
func restated(s message.Statement, serial protocol.Serial) (message.Statement, error) {
	f, err := message.ParseStatement(s)
	f.P1.Serial = serial
	return message.NewStatement(f.Root, f.P1.Marshal(), f.Challenge, f.P2.Marshal()), err
}

// TestSettleFails asks questions that get no answer: the outcome stays unknown.
func TestSettleFails(t *testing.T) {
	a := clienttest.New(t)
	c, _, address := left(t, a, false)
	serial, err := c.Last()
	if err != nil {
		t.Fatal(err)
	}
	cut := clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if toClient && m[0] == 0x41 {
			return nil
		}
		return m
	}}
	for want, do := range map[protocol.Code]clienttest.Behaviour{
		protocol.CodeSuspended: {Deny: protocol.CodeSuspended}, protocol.CodeLink: cut, protocol.CodeLocked: {P2: message.P2{Code: protocol.CodeLocked}},
	} {
		a.Do(do)
		r, err := c.Settle(t.Context(), clienttest.Dial(t, address), serial, says(protocol.Approve))
		if got, _ := protocol.CodeOf(err); got != want || r.Known || r.Serial != serial || errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("%+v, %v, want %v", r, err, want)
		}
		if c.state.Session != nil {
			t.Error("the question is still open")
		}
	}
}

func TestDryRun(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	r, err := c.Authorize(t.Context(), link, Request{Service: protocol.ServiceDryRun}, says(protocol.Approve))
	if err != nil || !r.Approved() || len(a.Acts()) != 0 || c.state.Session != nil {
		t.Errorf("%+v, %v, acts %v", r, err, a.Acts())
	}
	if list, err := c.Receipts(); err != nil || len(list) != 0 {
		t.Errorf("receipts %v, %v", list, err)
	}
}

func TestVerifyReceipt(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Decide: true})
	c, dir := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	full, err := c.Authorize(t.Context(), link, Request{Service: 100, Receipt: true}, says(protocol.Approve))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.VerifyReceipt(full.Serial); err != nil {
		t.Errorf("a good one: %v", err)
	}
	if _, err := c.VerifyReceipt(plain.Serial); !errors.Is(err, ErrNoReceipt) {
		t.Errorf("not a full one: %v", err)
	}
	now := c.now
	c.now = func() time.Time { return time.Now().AddDate(5, 0, 0) }
	if _, err := c.VerifyReceipt(full.Serial); err != nil {
		t.Errorf("five years later: %v", err)
	}
	c.now = now
	for name, change := range map[string]func(*Receipt){
		"decision":  func(r *Receipt) { r.Decision[len(r.Decision)-1] ^= 1 },
		"statement": func(r *Receipt) { r.Statement = plain.Statement },
		"result":    func(r *Receipt) { r.Result = protocol.ResultDenied },
	} {
		r, err := c.Receipt(full.Serial)
		if err != nil {
			t.Fatal(err)
		}
		if change(&r); verifies(c, r) {
			t.Errorf("another %s verifies", name)
		}
	}
	file := filepath.Join(dir, receiptFile(full.Serial))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, bytes.Replace(b, []byte(`"result": 1`), []byte(`"result": 3`), 1))
	if _, err := c.VerifyReceipt(full.Serial); !errors.Is(err, ErrReceipt) {
		t.Errorf("an altered file: %v", err)
	}
}
