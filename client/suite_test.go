package client

import (
	"testing"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/softhsm-test/clienttest"
)

// TestSuites: a phone follows the KeyCerts from one suite to the other and back, and enrols at an appliance of either.
func TestSuites(t *testing.T) {
	a, other := clienttest.New(t), clienttest.New(t)
	var sent []byte // suite of each M1
	a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if !toClient && m[0] == 0x11 {
			sent = append(sent, m[1]>>6+1)
		}
		return m
	}})
	c, dir := enrolledClient(t, a)
	address := a.Listen("tcp")
	for _, suite := range []uint8{message.Suite2, message.Suite1} {
		a.UseSuite(suite)
		if r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve)); err != nil || !r.Approved() {
			t.Fatalf("suite %d: %+v, %v", suite, r, err)
		}
		c = reopen(t, c, dir)
	}
	if string(sent) != string([]byte{1, 2, 2, 1}) {
		t.Errorf("M1s of suites %v", sent)
	}
	other.UseSuite(message.Suite2)
	c, _ = enrolledClient(t, other)
	link := clienttest.Dial(t, other.Listen("tcp"))
	if r, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve)); err != nil || !r.Approved() {
		t.Errorf("enrolled at suite 2: %+v, %v", r, err)
	}
}
