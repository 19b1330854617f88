package relay

import (
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"countersign/protocol"
)

// session is one M1 with what the appliance answered to it.
type session struct {
	m1     [sha256.Size]byte
	nonce  protocol.Nonce
	root   protocol.RootID // pinned when M1 was applied: the device may have followed to another since
	ticket *ticket
	second *pending      // passed to the appliance, so that M1 may be a second approver's; nil: none
	ready  chan struct{} // closed once what follows is set

	err     error
	answer  []byte // M2 or MU
	handle  []byte // nil: there is nothing to countersign
	chal    protocol.Challenge
	expires time.Time

	mu     sync.Mutex             // guards what follows
	sent   map[[32]byte]time.Time // when each M3 was first sent, by its SHA-256
	first  time.Time              // when the first of them was
	calls  int                    // M3s under way
	over   bool                   // the ttl has ended
	isLeft bool                   // the order is not this session's to settle
	waits  *pending               // that an M3 of this session came to; nil: none
}

// maxSent bounds the M3s that a session tells apart. An honest phone sends three.
const maxSent = 8

// begin notes that an M3 is under way, unless the ttl has ended.
func (s *session) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.handle == nil {
		return false
	}
	s.calls++
	return true
}

// end goes with begin. The order of a session that ended meanwhile is over only
// when the last answer is in: it may be an approval.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls--
	s.expireLocked()
}

// expire ends the session.
func (s *session) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.expireLocked()
}

func (s *session) expireLocked() {
	if s.over && s.calls == 0 && !s.isLeft {
		s.ticket.settle(Settlement{Result: ResultExpired, Code: protocol.CodeExpired})
	}
}

// sentAt notes that an M3 is being sent and tells when it first was. Beyond
// maxSent it is the time of the very first: too early is on the safe side.
func (s *session) sentAt(m3 []byte) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	hash := sha256.Sum256(m3)
	if at, known := s.sent[hash]; known {
		return at
	}
	at := time.Now()
	if s.first.IsZero() {
		s.first = at
	}
	if len(s.sent) >= maxSent {
		return s.first
	}
	s.sent[hash] = at
	return at
}

// leave notes that something else settles the order from here on: an act, a second
// approver, or another session that gets it. It is true the first time.
func (s *session) leave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	isFirst := !s.isLeft
	s.isLeft = true
	return isFirst
}

// settle tells who gave the order what came of it, unless something else will.
func (s *session) settle(o Settlement) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isLeft {
		s.ticket.settle(o)
	}
}

// live says whether an M3 can be sent for this session.
func (s *session) live() bool {
	return s.isReady() && s.handle != nil && time.Now().Before(s.expires)
}

// hasSent says whether these bytes were sent in this session.
func (s *session) hasSent(m3 [sha256.Size]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.sent[m3]
	return known
}

// maxSessions bounds the M1s that the device remembers.
const maxSessions = 128

// errorLife is how long an answer without a handle is repeated.
const errorLife = time.Minute

// table has the sessions of the device, so that a phone that connects again finds
// its own, and the links in use.
type table struct {
	mu       sync.Mutex // guards what follows
	byM1     map[[sha256.Size]byte]*session
	byAge    []*session // the newest last
	phones   map[*phone]bool
	isClosed bool
}

func newTable() *table {
	return &table{byM1: map[[sha256.Size]byte]*session{}, phones: map[*phone]bool{}}
}

// find gives the session of an M1. Where there is none it is made, and the
// caller, told so, fills it and closes ready. [protocol.CodeLinkBusy] if
// there are too many under way.
func (t *table) find(m1 []byte) (s *session, isNew bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	hash := sha256.Sum256(m1)
	t.dropLocked()
	if s, known := t.byM1[hash]; known {
		return s, false, nil
	}
	if len(t.byAge) >= maxSessions {
		oldest := slices.IndexFunc(t.byAge, (*session).isReady)
		if oldest < 0 {
			return nil, false, protocol.Retry{Code: protocol.CodeLinkBusy, After: busyPause}
		}
		t.removeLocked(t.byAge[oldest])
	}
	s = &session{m1: hash, ready: make(chan struct{}), sent: map[[32]byte]time.Time{}}
	t.byM1[hash] = s
	t.byAge = append(t.byAge, s)
	return s, true, nil
}

func (s *session) isReady() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// dropLocked forgets what is over.
func (t *table) dropLocked() {
	now := time.Now()
	t.byAge = slices.DeleteFunc(t.byAge, func(s *session) bool {
		isOver := s.isReady() && !now.Before(s.expires)
		if isOver {
			delete(t.byM1, s.m1)
		}
		return isOver
	})
}

func (t *table) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(s)
}

func (t *table) removeLocked(s *session) {
	t.byAge = slices.DeleteFunc(t.byAge, func(other *session) bool { return other == s })
	delete(t.byM1, s.m1)
}

// of gives the session for an M3 on a link without an M1: the one in which it was
// sent before, else the newest that is live; nil if there is none.
func (t *table) of(m3 []byte) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	hash := sha256.Sum256(m3)
	var newest *session
	for _, s := range slices.Backward(t.byAge) {
		switch {
		case !s.live():
		case s.hasSent(hash):
			return s
		case newest == nil:
			newest = s
		}
	}
	return newest
}

// join notes a link in use; false if the device is stopping.
func (t *table) join(p *phone) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.isClosed {
		t.phones[p] = true
	}
	return !t.isClosed
}

func (t *table) leave(p *phone) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.phones, p)
}

// close ends the waiting for messages on all links. An answer that is being made
// is still sent.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isClosed = true
	for p := range t.phones {
		p.conn.Stop()
	}
}

// await waits until a session is ready.
func (s *session) await(ctx context.Context) error {
	select {
	case <-s.ready:
		return s.err
	case <-ctx.Done():
		return protocol.CodeTimeout
	}
}
