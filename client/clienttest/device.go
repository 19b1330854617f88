package clienttest

import (
	"bytes"
	"context"
	"crypto/hpke"
	"crypto/rand"
	"net"
	"path/filepath"
	"time"

	"countersign/protocol"
)

// challenge is what device and appliance remember of one M1.
type challenge struct {
	m1, m2    []byte
	channel   protocol.Channel
	p1        protocol.P1
	statement protocol.Statement
}

// Listen opens the device's link on "tcp" or "unix", until the test ends, and gives
// its address as in tcp:127.0.0.1:7777.
func (a *Appliance) Listen(network string) string {
	a.t.Helper()
	target := "127.0.0.1:0"
	if network == "unix" {
		target = filepath.Join(a.t.TempDir(), "link")
	}
	l, err := net.Listen(network, target)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go a.serve(conn)
		}
	}()
	return network + ":" + l.Addr().String()
}

func (a *Appliance) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	for {
		message, err := protocol.ReadFrame(conn)
		if err != nil {
			return
		}
		if message = a.tamper(false, message); message == nil {
			return
		}
		if message = a.tamper(true, a.answer(message)); message == nil {
			return
		}
		if err := protocol.WriteFrame(conn, message); err != nil {
			return
		}
	}
}

func (a *Appliance) tamper(toClient bool, message []byte) []byte {
	a.mu.Lock()
	tamper := a.do.Tamper
	a.mu.Unlock()
	if tamper == nil {
		return message
	}
	a.tampering.Lock()
	defer a.tampering.Unlock()
	return tamper(toClient, message)
}

// answer is device and appliance in one.
func (a *Appliance) answer(message []byte) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.do.Forget {
		a.current, a.do.Forget = nil, false
	}
	var answer []byte
	var err error
	switch kind, _ := protocol.Kind(message); kind {
	case protocol.KindM1:
		answer, err = a.applyLocked(message)
	case protocol.KindM3:
		answer, err = a.countersignLocked(message)
	default:
		err = protocol.CodeFormat
	}
	if err != nil {
		code, _ := protocol.CodeOf(err)
		return protocol.LinkError{Code: code}.Marshal()
	}
	return answer
}

func (a *Appliance) applyLocked(message []byte) ([]byte, error) {
	if a.current != nil && bytes.Equal(a.current.m1, message) {
		return a.current.m2, nil
	}
	m1, err := protocol.ParseM1(message)
	if err != nil {
		return nil, err
	}
	if uint64(m1.Epoch) != a.kemEpoch%64 {
		return protocol.KeyUpdate{Certs: [][]byte{a.certs[protocol.UseKEM]}}.Marshal(), nil
	}
	key, err := hpke.NewDHKEMPrivateKey(a.kem)
	if err != nil {
		return nil, err
	}
	raw, es, err := m1.Open(key, a.root.Public().RootID())
	if err != nil {
		return nil, err
	}
	p1, err := protocol.ParseP1(raw)
	if err != nil {
		return nil, err
	}
	a.noteM1Locked(p1.Serial.Counter(), message)
	var nonce, u protocol.Nonce
	_, _ = rand.Read(nonce[:])
	_, _ = rand.Read(u[:])
	chal := protocol.NewChallenge(nonce, u)
	p2 := a.p2Locked(p1).Marshal()
	c := &challenge{m1: message, p1: p1, channel: protocol.NewChannel(es, message, chal)}
	c.m2 = c.channel.SealM2(chal, p2)
	c.statement = protocol.NewStatement(a.root.Public().RootID(), raw, chal, p2)
	a.current = c
	return c.m2, nil
}

// noteM1Locked asserts that a counter is used for one M1 only, and that it rises.
func (a *Appliance) noteM1Locked(counter uint32, m1 []byte) {
	s, again := a.bySerial[counter]
	if again && !bytes.Equal(s.m1, m1) {
		a.t.Errorf("counter %d was used for two requests", counter)
	}
	if !again && counter <= a.highest {
		a.t.Errorf("counter %d after %d", counter, a.highest)
	}
	a.highest = max(a.highest, counter)
	s.m1 = m1
	a.bySerial[counter] = s
}

// DefaultTTL is the ttl of a challenge, in seconds.
const DefaultTTL = 60

func (a *Appliance) p2Locked(p1 protocol.P1) protocol.P2 {
	p := a.do.P2
	if p.Code != 0 {
		return p
	}
	if p.TTL == 0 {
		p.TTL = DefaultTTL
	}
	p.Level = max(p.Level, p1.Level)
	if p.Factors == 0 {
		p.Factors, _ = p.Level.Factors()
	}
	if p.DeviceName == "" {
		p.DeviceName = "Main entrance"
	}
	if p1.Proposal != nil {
		if p.Amount == nil {
			p.Amount = p1.Proposal.Amount
		}
		if p.Text == "" {
			p.Text = p1.Proposal.Text
		}
	}
	p.Now, p.Device = uint32(time.Now().Unix()), a.device.Handle()
	return p
}

func (a *Appliance) countersignLocked(m3 []byte) ([]byte, error) {
	c := a.current
	if c == nil {
		return nil, protocol.CodeExpired
	}
	_, raw, err := c.channel.OpenM3(m3)
	if err != nil {
		return nil, err
	}
	p3, err := protocol.ParseP3(raw)
	if err != nil {
		return nil, err
	}
	s := a.bySerial[c.p1.Serial.Counter()]
	if s.m3 != nil && !bytes.Equal(s.m3, m3) {
		a.t.Errorf("counter %d has two different M3", c.p1.Serial.Counter())
	}
	if s.m3 = m3; s.answer == nil {
		p4, err := a.decideLocked(c, p3)
		if err != nil {
			return nil, err
		}
		if s.answer = &p4; p4.Result == protocol.ResultApproved {
			s.acts++
		}
	}
	a.bySerial[c.p1.Serial.Counter()] = s
	var r protocol.ReceiptNonce
	_, _ = rand.Read(r[:])
	return c.channel.SealM4(m3, r, s.answer.Marshal()), nil
}

func (a *Appliance) decideLocked(c *challenge, p3 protocol.P3) (protocol.P4, error) {
	key, known := a.clients[c.p1.Client]
	if !known || protocol.VerifyCountersign(key, c.statement, p3.Approval(), p3.Signature[:]) != nil {
		a.t.Errorf("countersignature of client %v is not good", c.p1.Client)
		return protocol.P4{Reason: protocol.CodeRefused}, nil
	}
	switch {
	case a.do.Deny != 0:
		return protocol.P4{Reason: a.do.Deny}, nil
	case a.do.Result == protocol.ResultRetry:
		left := uint64(2)
		return protocol.P4{Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: &left}, nil
	case p3.Verdict == protocol.Refuse:
		return protocol.P4{Reason: protocol.CodeUserRefused}, nil
	}
	p4 := protocol.P4{Result: protocol.ResultApproved}
	if !a.do.Decide || c.p1.Capabilities&protocol.CapabilityFullReceipt == 0 {
		return p4, nil
	}
	d := protocol.Decision{
		Result: protocol.ResultApproved, Statement: c.statement.Hash(), Level: 1, Factors: protocol.FactorSignature,
		IssuedAt: uint64(time.Now().Unix()), Lifetime: DefaultTTL, Device: a.device, Service: c.p1.Service,
	}
	var err error
	p4.Decision, err = protocol.SignDecision(context.Background(), a.decision, 1, d)
	return p4, err
}
