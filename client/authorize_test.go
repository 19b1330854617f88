package client

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
	"countersign/softhsm-test/clienttest"
)

func TestAuthorize(t *testing.T) {
	a := clienttest.New(t)
	c, dir := enrolledClient(t, a)
	twelve := &protocol.Amount{Minor: 1200, Currency: "EUR"}
	if err := c.SetName(200, "payment"); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "unix"} {
		link := clienttest.Dial(t, a.Listen(network))
		var shown Shown
		yes := approverFunc(func(_ context.Context, s Shown) (protocol.Verdict, error) {
			shown = s
			return protocol.Approve, nil
		})
		r, err := c.Authorize(t.Context(), link, Request{Service: 200, Amount: twelve, Text: "Ticket 7"}, yes)
		if err != nil || !r.Approved() {
			t.Fatalf("%s: %+v, %v", network, r, err)
		}
		if shown.DeviceName != "Main entrance" || shown.Device != a.Device() || shown.ServiceName != "payment" ||
			*shown.Amount != *twelve || shown.Text != "Ticket 7" || shown.Level != 1 || shown.TTL > time.Minute || shown.TTL < 50*time.Second {
			t.Errorf("shown: %+v", shown)
		}
		if r, err = c.Authorize(t.Context(), link, door(), says(protocol.Refuse)); err != nil || r.Approved() ||
			r.Reason != protocol.CodeUserRefused || r.Verdict != protocol.Refuse {
			t.Fatalf("%s: refusal: %+v, %v", network, r, err)
		}
	}
	if c.state.Session != nil {
		t.Error("the session was not erased")
	}
	list, err := reopen(t, c, dir).Receipts()
	if err != nil || len(list) != 4 {
		t.Fatalf("receipts %v, %v", list, err)
	}
	for i, r := range list {
		if int(r.Serial.Counter()) != i+1 || !r.Known || r.Approved() != (i%2 == 0) || r.DeviceName != "Main entrance" {
			t.Errorf("receipt %d: %+v", i, r)
		}
	}
	if got := a.Acts(); !reflect.DeepEqual(got, map[uint32]int{1: 1, 3: 1}) {
		t.Errorf("acts %v", got)
	}
}

func TestFullReceipt(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Decide: true})
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	r, err := c.Authorize(t.Context(), link, Request{Service: 100, Receipt: true}, says(protocol.Approve))
	if err != nil || r.Decision == nil || !r.Verified {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Decision[len(r.Decision)-1] ^= 1; verifies(c, r) {
		t.Error("an altered decision verifies")
	}
	if stored, err := c.receipt(r.Serial); err != nil || !stored.Verified || len(stored.Decision) != len(r.Decision) {
		t.Errorf("stored %+v, %v", stored, err)
	}
	if r, err = c.Authorize(t.Context(), link, door(), says(protocol.Approve)); err != nil || r.Decision != nil {
		t.Errorf("a decision that nobody asked for: %+v, %v", r, err)
	}
}

func TestRefusedBeforeTheUserIsAsked(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	five := uint64(5)
	for name, tc := range map[string]struct {
		p2   message.P2
		req  Request
		want protocol.Code
	}{
		"error form":        {p2: message.P2{Code: protocol.CodeService}, req: door(), want: protocol.CodeService},
		"error form, retry": {p2: message.P2{Code: protocol.CodeLocked, Retry: &five}, req: door(), want: protocol.CodeLocked},
		"another amount":    {p2: message.P2{Amount: &protocol.Amount{Minor: 9900, Currency: "EUR"}}, req: Request{Service: 200, Amount: &protocol.Amount{Minor: 1200, Currency: "EUR"}}, want: protocol.CodePolicy},
		"another text":      {p2: message.P2{Text: "Yacht"}, req: Request{Service: 200, Text: "Bread"}, want: protocol.CodePolicy},
		"unknown currency":  {p2: message.P2{Amount: &protocol.Amount{Minor: 1, Currency: "XXX"}}, req: door(), want: protocol.CodePolicy},
		"below own floor":   {req: Request{Service: 300}, want: protocol.CodeLevel},
		"unknown factor":    {p2: message.P2{Factors: 33}, req: door(), want: protocol.CodeLevel},
		"no such level":     {p2: message.P2{TTL: 0xffffffffffffffff, Level: 9}, req: door(), want: protocol.CodeLevel},
	} {
		a.Do(clienttest.Behaviour{P2: tc.p2})
		_, err := c.Authorize(t.Context(), link, tc.req, nobody(t))
		if got, _ := protocol.CodeOf(err); got != tc.want {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		var refused *RefusedError
		if errors.As(err, &refused) != (tc.p2.Code != 0) || refused != nil && tc.p2.Retry != nil && refused.Retry != 5*time.Second {
			t.Errorf("%s: %#v", name, err)
		}
		if c.state.Session != nil {
			t.Errorf("%s: the session was not erased", name)
		}
	}
	if list, err := c.Receipts(); err != nil || len(list) != 0 || len(a.Acts()) != 0 {
		t.Errorf("receipts %v, %v, acts %v", list, err, a.Acts())
	}
}

func TestNoSignatureAfterTheTTL(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	late := false
	c.now = func() time.Time {
		if late {
			return time.Now().Add(clienttest.DefaultTTL * time.Second)
		}
		return time.Now()
	}
	slow := approverFunc(func(context.Context, Shown) (protocol.Verdict, error) {
		late = true
		return protocol.Approve, nil
	})
	if _, err := c.Authorize(t.Context(), link, door(), slow); !errors.Is(err, protocol.CodeExpired) {
		t.Errorf("answer after the ttl: %v", err)
	}
	late = false
	a.Do(clienttest.Behaviour{P2: message.P2{TTL: 1}})
	waits := approverFunc(func(ctx context.Context, _ Shown) (protocol.Verdict, error) {
		<-ctx.Done()
		return protocol.Approve, nil
	})
	if _, err := c.Authorize(t.Context(), link, door(), waits); !errors.Is(err, protocol.CodeExpired) {
		t.Errorf("no answer: %v", err)
	}
	failed := errors.New("no terminal")
	broken := approverFunc(func(context.Context, Shown) (protocol.Verdict, error) { return protocol.Approve, failed })
	if _, err := c.Authorize(t.Context(), link, door(), broken); !errors.Is(err, failed) {
		t.Errorf("an approver that fails: %v", err)
	}
	if len(a.Acts()) != 0 {
		t.Errorf("acts %v", a.Acts())
	}
}

func TestDenied(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Deny: protocol.CodeSuspended})
	c, _ := enrolledClient(t, a)
	r, err := c.Authorize(t.Context(), clienttest.Dial(t, a.Listen("tcp")), door(), says(protocol.Approve))
	if err != nil || r.Approved() || !r.Known || r.Reason != protocol.CodeSuspended {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRetryKeepsTheSession(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Result: protocol.ResultRetry})
	c, _ := enrolledClient(t, a)
	_, err := c.Authorize(t.Context(), clienttest.Dial(t, a.Listen("tcp")), door(), says(protocol.Approve))
	var retry *RetryError
	if !errors.As(err, &retry) || retry.TriesLeft != 2 || c.state.Session == nil {
		t.Errorf("%v, session %v", err, c.state.Session)
	}
}

func TestKeyUpdate(t *testing.T) {
	a := clienttest.New(t)
	c, dir := enrolledClient(t, a)
	address := a.Listen("tcp")
	a.RotateKEM()
	r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve))
	if err != nil || !r.Approved() || r.Serial.Counter() != 2 {
		t.Fatalf("%+v, %v: want approved with the second serial", r, err)
	}
	c = reopen(t, c, dir)
	if s, err := c.Status(); err != nil || s.KEMEpoch != 2 {
		t.Errorf("status %+v, %v", s, err)
	}
	rotations := 0
	a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if !toClient {
			rotations++
			a.RotateKEM()
		}
		return m
	}})
	_, err = c.Authorize(t.Context(), clienttest.Dial(t, address), door(), nobody(t))
	if !errors.Is(err, protocol.CodeStaleKey) || rotations != 3 {
		t.Errorf("updates without end: %v after %d", err, rotations)
	}
	mu := trust.KeyUpdate{Certs: [][]byte{{0x80}}}.Marshal()
	a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if toClient {
			return mu
		}
		return m
	}})
	if _, err = c.Authorize(t.Context(), clienttest.Dial(t, address), door(), nobody(t)); !errors.Is(err, protocol.CodeStaleKey) {
		t.Errorf("an update without a key: %v", err)
	}
}

func TestAlteredChallenge(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	var m2 []byte
	a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if toClient && m2 == nil {
			m2 = bytes.Clone(m)
		}
		return m
	}})
	if r, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve)); err != nil || !r.Approved() {
		t.Fatalf("%+v, %v", r, err)
	}
	replay := func([]byte) []byte { return m2 }
	flip := func(i int) func([]byte) []byte {
		return func(m []byte) []byte { m[i] ^= 1; return m }
	}
	for name, alter := range map[string]func([]byte) []byte{
		"replayed": replay, "clear bytes": flip(3), "ciphertext": flip(20), "version": flip(0), "empty P2": func(m []byte) []byte { return m[:33] },
		"M4 in its place": func(m []byte) []byte { m[0] = 0x41; return m }, "no message": func([]byte) []byte { return []byte{0xff} },
	} {
		a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
			if toClient {
				return alter(bytes.Clone(m))
			}
			return m
		}})
		if _, err := c.Authorize(t.Context(), link, door(), nobody(t)); !errors.Is(err, ErrNotAuthentic) {
			t.Errorf("%s: %v, want ErrNotAuthentic", name, err)
		}
		if c.state.Session != nil {
			t.Errorf("%s: session was not erased", name)
		}
	}
}

func TestDeviceReports(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if toClient {
			return message.LinkError{Code: protocol.CodeHSM, Retry: 7}.Marshal()
		}
		return m
	}})
	_, err := c.Authorize(t.Context(), clienttest.Dial(t, a.Listen("tcp")), door(), nobody(t))
	var me *DeviceError
	if !errors.As(err, &me) || me.Code != protocol.CodeHSM || me.Retry != 7*time.Second || errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("error %v", err)
	}
}

func TestLinkFailures(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	address := a.Listen("tcp")
	if _, err := openClient(t, Config{Dir: t.TempDir()}).Authorize(t.Context(), nil, door(), nobody(t)); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("without an enrolment: %v", err)
	}
	a.Do(clienttest.Behaviour{Tamper: func(bool, []byte) []byte { return nil }})
	if _, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), nobody(t)); !errors.Is(err, protocol.CodeLink) {
		t.Errorf("cut before the challenge: %v", err)
	}
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	a.Do(clienttest.Behaviour{Tamper: func(bool, []byte) []byte { <-hold; return nil }})
	c.timeout = 20 * time.Millisecond
	if _, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), nobody(t)); !errors.Is(err, protocol.CodeTimeout) {
		t.Errorf("no answer: %v", err)
	}
	c.timeout = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Authorize(ctx, clienttest.Dial(t, address), door(), nobody(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if c.state.Session != nil {
		t.Error("session was not erased")
	}
}
