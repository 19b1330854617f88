package clienttest

import (
	"bytes"
	"crypto/rand"
	"net"
	"path/filepath"
	"slices"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// challenge is the state of device and appliance for one M1.
type challenge struct {
	m1, m2    []byte
	channel   message.Channel
	p1        message.P1
	p2        message.P2
	statement message.Statement
}

// Listen opens the device's link on "tcp" or "unix" until the test ends, and returns its address,
// such as tcp:127.0.0.1:7777.
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
			a.count(1)
			go a.serve(conn)
		}
	}()
	return network + ":" + l.Addr().String()
}

// count changes the number of open links.
func (a *Appliance) count(change int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open += change
	a.closed.Broadcast()
}

// HangUp closes links and returns when the device has answered everything that was sent on any link. All links
// must be closed then: the device serves links at the same time, and what comes late on one would mix with what comes
// on the next.
func (a *Appliance) HangUp(address string, links ...Link) {
	a.t.Helper()
	for _, l := range links {
		_ = l.conn.Close()
	}
	// Links are accepted in order. After the answer on the last one, the device has accepted all of them.
	last := Dial(a.t, address)
	if err := last.Send([]byte{0}); err != nil {
		a.t.Fatal(err)
	}
	if _, err := last.Receive(); err != nil {
		a.t.Fatal(err)
	}
	_ = last.conn.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.open != 0 {
		a.closed.Wait()
	}
}

func (a *Appliance) serve(conn net.Conn) {
	defer a.count(-1)
	defer func() { _ = conn.Close() }()
	for {
		msg, err := message.ReadFrame(conn)
		if err != nil {
			return
		}
		if msg = a.tamper(false, msg); msg == nil {
			return
		}
		if msg = a.tamper(true, a.answer(msg)); msg == nil {
			return
		}
		if err := message.WriteFrame(conn, msg); err != nil {
			return
		}
	}
}

func (a *Appliance) tamper(toClient bool, msg []byte) []byte {
	a.mu.Lock()
	tamper := a.do.Tamper
	a.mu.Unlock()
	if tamper == nil {
		return msg
	}
	a.tampering.Lock()
	defer a.tampering.Unlock()
	return tamper(toClient, msg)
}

// answer acts as device and appliance.
func (a *Appliance) answer(msg []byte) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.do.Forget {
		a.current, a.do.Forget = nil, false
	}
	var answer []byte
	var err error
	switch kind, _ := message.Kind(msg); kind {
	case message.KindM1:
		answer, err = a.applyLocked(msg)
	case message.KindM3:
		answer, err = a.countersignLocked(msg)
	default:
		err = protocol.CodeFormat
	}
	if err != nil {
		code, _ := protocol.CodeOf(err)
		return message.LinkError{Code: code}.Marshal()
	}
	return answer
}

func (a *Appliance) applyLocked(msg []byte) ([]byte, error) {
	if a.current != nil && bytes.Equal(a.current.m1, msg) {
		return a.current.m2, nil
	}
	m1, err := message.ParseM1(msg)
	if err != nil {
		return nil, err
	}
	if uint64(m1.Epoch) != a.kemEpoch%64 {
		certs := append(slices.Clone(a.rootCerts[1:]), a.certs[trust.UseKEM], a.certs[trust.UseDecision])
		return trust.KeyUpdate{Certs: certs}.Marshal(), nil
	}
	raw, es, err := m1.Open(message.NewKEM(a.suite, a.kem), a.root.Public().RootID())
	if err != nil {
		return nil, err
	}
	p1, err := message.ParseP1(raw)
	if err != nil {
		return nil, err
	}
	a.noteM1Locked(p1, msg)
	var nonce, u protocol.Nonce
	_, _ = rand.Read(nonce[:])
	_, _ = rand.Read(u[:])
	chal := protocol.NewChallenge(nonce, u)
	c := &challenge{m1: msg, p1: p1, p2: a.p2Locked(p1), channel: message.NewChannel(es, msg, chal)}
	p2 := c.p2.Marshal()
	c.m2 = c.channel.SealM2(chal, p2)
	if c.p2.Code == 0 {
		c.statement = message.NewStatement(a.root.Public().RootID(), raw, chal, p2)
	}
	a.current = c
	return c.m2, nil
}

// noteM1Locked asserts that a client uses each counter for one M1 only, and that counters increase.
func (a *Appliance) noteM1Locked(p1 message.P1, m1 []byte) {
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

func (a *Appliance) p2Locked(p1 message.P1) message.P2 {
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

// secondLocked shows a second approver the waiting request.
func (a *Appliance) secondLocked() message.P2 {
	if a.waiting == nil {
		return message.P2{Code: protocol.CodeService}
	}
	p, first, service := a.waiting.p2, a.waiting.statement.Hash(), a.waiting.p1.Service
	if a.do.FirstService != 0 {
		service = a.do.FirstService
	}
	p.FirstStatement, p.FirstService = &first, &service
	return p
}
