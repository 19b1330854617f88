package client

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/clienttest"
)

// cutAfterM3 loses the answer to the first M3, or the M3 itself.
func cutAfterM3(lose bool) clienttest.Behaviour {
	cut, m3 := false, false
	return clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		m3 = m3 || m[0] == 0x31
		if !cut && m3 && toClient != lose {
			cut = true
			return nil
		}
		return m
	}}
}

// left returns a client whose M3 has no answer.
func left(t *testing.T, a *clienttest.Appliance, lose bool) (c *Client, dir, address string) {
	t.Helper()
	c, dir = enrolledClient(t, a)
	address = a.Listen("tcp")
	a.Do(cutAfterM3(lose))
	r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve))
	if !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, protocol.CodeLink) || r.Known || r.Approved() {
		t.Fatalf("%+v, %v: want an unknown outcome", r, err)
	}
	return c, dir, address
}

func TestResume(t *testing.T) {
	for name, tc := range map[string]struct{ lose, reopen, forget bool }{
		"M4 lost":                     {},
		"M3 lost":                     {lose: true},
		"M4 lost, process died":       {reopen: true},
		"M3 lost, process died":       {lose: true, reopen: true},
		"device lost the challenge":   {forget: true, reopen: true},
		"M3 lost, device lost it too": {lose: true, forget: true},
	} {
		t.Run(name, func(t *testing.T) {
			a := clienttest.New(t)
			c, dir, address := left(t, a, tc.lose)
			if tc.reopen {
				c = reopen(t, c, dir)
			}
			pending, ok := c.Pending()
			if !ok || pending.Serial.Counter() != 1 || pending.Service != 100 || pending.Verdict != protocol.Approve {
				t.Fatalf("pending %+v, %v", pending, ok)
			}
			a.Do(clienttest.Behaviour{Forget: tc.forget})
			r, err := c.Resume(t.Context(), clienttest.Dial(t, address))
			if tc.forget {
				// The device then has another challenge for this M1, which the client must not
				// answer.
				if !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, protocol.CodeExpired) {
					t.Fatalf("%+v, %v", r, err)
				}
				return
			}
			if err != nil || !r.Approved() || r.Serial != pending.Serial {
				t.Fatalf("%+v, %v", r, err)
			}
			if got := a.Acts(); !reflect.DeepEqual(got, map[uint32]int{1: 1}) {
				t.Errorf("acts %v", got)
			}
			if _, err := c.Resume(t.Context(), nil); !errors.Is(err, ErrNothingPending) {
				t.Errorf("second Resume: %v", err)
			}
		})
	}
}

// TestResumeSendsM1: the device needs the M1 once more and repeats its M2.
func TestResumeSendsM1(t *testing.T) {
	a := clienttest.New(t)
	c, _, address := left(t, a, true)
	reminded, refused := false, false
	a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		switch {
		case !toClient && m[0] == 0x11:
			reminded = true
		case toClient && !reminded:
			refused = true
			return message.LinkError{Code: protocol.CodeExpired}.Marshal()
		}
		return m
	}})
	r, err := c.Resume(t.Context(), clienttest.Dial(t, address))
	if err != nil || !r.Approved() || !reminded || !refused {
		t.Errorf("%+v, %v, reminded %v", r, err, reminded)
	}
}

func TestUnknownOutcomeWhateverComes(t *testing.T) {
	flip := func(i int) func([]byte) []byte {
		return func(m []byte) []byte { m[i] ^= 1; return m }
	}
	for name, alter := range map[string]func([]byte) []byte{
		"ciphertext": flip(12), "r": flip(2), "attempt": flip(1), "version": flip(0), "tag": func(m []byte) []byte { return m[:len(m)-1] },
		"an ME":      func([]byte) []byte { return message.LinkError{Code: protocol.CodeServerUnreachable}.Marshal() },
		"one byte":   func([]byte) []byte { return []byte{0x41} },
		"another M2": func([]byte) []byte { return make([]byte, 60) },
	} {
		a := clienttest.New(t)
		c, _ := enrolledClient(t, a)
		link := clienttest.Dial(t, a.Listen("tcp"))
		a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
			if toClient && m[0] == 0x41 {
				return alter(m)
			}
			return m
		}})
		_, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve))
		var unknown *UnknownOutcomeError
		if !errors.As(err, &unknown) || unknown.Serial.Counter() != 1 {
			t.Errorf("%s: %v", name, err)
		}
		a.Do(clienttest.Behaviour{})
		if r, err := c.Resume(t.Context(), link); err != nil || !r.Approved() {
			t.Errorf("%s: resumed: %+v, %v", name, r, err)
		}
		if got := a.Acts(); !reflect.DeepEqual(got, map[uint32]int{1: 1}) {
			t.Errorf("%s: acts %v", name, got)
		}
	}
}

func TestPendingGivenUp(t *testing.T) {
	for name, next := range map[string]func(t *testing.T, c *Client, dir, address string) *Client{
		"another authorization": func(t *testing.T, c *Client, _, address string) *Client {
			if r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve)); err != nil || !r.Approved() {
				t.Errorf("%+v, %v", r, err)
			}
			return c
		},
		"resumed after the ttl": func(t *testing.T, c *Client, _, _ string) *Client {
			c.now = func() time.Time { return time.Now().Add(clienttest.DefaultTTL * time.Second) }
			if _, err := c.Resume(t.Context(), nil); !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, protocol.CodeExpired) {
				t.Errorf("error %v", err)
			}
			return c
		},
		"opened after the ttl": func(t *testing.T, c *Client, dir, _ string) *Client {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			return openClient(t, Config{Dir: dir, Now: func() time.Time { return time.Now().Add(time.Hour) }})
		},
		"opened with a clock set back": func(t *testing.T, c *Client, dir, _ string) *Client {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			return openClient(t, Config{Dir: dir, Now: func() time.Time { return time.Now().Add(-time.Hour) }})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := clienttest.New(t)
			c, dir, address := left(t, a, false)
			c = next(t, c, dir, address)
			list, err := c.Receipts()
			if err != nil || len(list) == 0 || list[0].Known || list[0].Approved() || list[0].Serial.Counter() != 1 {
				t.Errorf("receipts %+v, %v", list, err)
			}
			if _, ok := c.Pending(); ok || c.state.Session != nil {
				t.Error("still pending")
			}
		})
	}
}
