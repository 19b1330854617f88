package clienttest

import (
	"bytes"
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
	p2        protocol.P2
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
	a.noteM1Locked(p1, message)
	var nonce, u protocol.Nonce
	_, _ = rand.Read(nonce[:])
	_, _ = rand.Read(u[:])
	chal := protocol.NewChallenge(nonce, u)
	c := &challenge{m1: message, p1: p1, p2: a.p2Locked(p1), channel: protocol.NewChannel(es, message, chal)}
	p2 := c.p2.Marshal()
	c.m2 = c.channel.SealM2(chal, p2)
	if c.p2.Code == 0 {
		c.statement = protocol.NewStatement(a.root.Public().RootID(), raw, chal, p2)
	}
	a.current = c
	return c.m2, nil
}

// noteM1Locked asserts that a client uses a counter for one M1 only, and that it
// rises.
func (a *Appliance) noteM1Locked(p1 protocol.P1, m1 []byte) {
	counter, highest := p1.Serial.Counter(), a.highest[p1.Client]
	s := a.noteLocked(slotOf(p1), p1.Serial)
	if s.m1 != nil && !bytes.Equal(s.m1, m1) {
		a.t.Errorf("counter %d was used for two requests", counter)
	}
	if s.m1 == nil && counter <= highest {
		a.t.Errorf("counter %d after %d", counter, highest)
	}
	a.highest[p1.Client] = max(highest, counter)
	s.m1 = m1
}

func (a *Appliance) noteLocked(in slot, serial protocol.Serial) *seen {
	s := a.slots[in]
	if s == nil {
		s = &seen{serial: serial}
		a.slots[in] = s
	}
	return s
}

// DefaultTTL is the ttl of a challenge, in seconds.
const DefaultTTL = 60

func (a *Appliance) p2Locked(p1 protocol.P1) protocol.P2 {
	p := a.do.P2
	if p.Code != 0 {
		return p
	}
	if p1.Service == protocol.ServiceCoApproval {
		return a.secondLocked()
	}
	if p1.Service < protocol.FirstService {
		p.Level, p.Factors = 0, 0
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

// secondLocked shows a second approver what waits.
func (a *Appliance) secondLocked() protocol.P2 {
	if a.waiting == nil {
		return protocol.P2{Code: protocol.CodeService}
	}
	p, first, service := a.waiting.p2, a.waiting.statement.Hash(), a.waiting.p1.Service
	if a.do.FirstService != 0 {
		service = a.do.FirstService
	}
	p.FirstStatement, p.FirstService = &first, &service
	return p
}
