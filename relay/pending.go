package relay

import (
	"fmt"
	"sync"
	"time"

	"countersign/protocol"
	"countersign/protocol/receipt"
)

// pending is an approval that waits for a second approver, PROTOCOL.md §4. Its
// order stays open until the final decision, or until the time is over.
type pending struct {
	handle []byte // names it to the appliance; nil: nobody can approve it
	chal   protocol.Challenge
	root   protocol.RootID  // pinned when its apply was sent
	first  receipt.Decision // the verified one of result 3
	ticket *ticket

	// Guarded by the mu of pendings.
	timer  *time.Timer
	calls  int  // M3s under way that may approve it
	over   bool // its time has ended
	closed bool // decided, or a newer one of the same order took its place
}

// pendings has the approvals that wait. The newest is the one that each apply
// names.
type pendings struct {
	wait time.Duration

	mu     sync.Mutex // guards what follows
	newest *pending
	open   map[*pending]bool
}

func newPendings(wait time.Duration) *pendings {
	return &pendings{wait: wait, open: map[*pending]bool{}}
}

// current gives the newest that can still be approved; nil if there is none.
func (l *pendings) current() *pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.newest
	if p == nil || p.handle == nil || !p.ticket.isOpen() {
		return nil
	}
	return p
}

// add makes p the newest. Those that it takes the place of are closed if they are
// of the same order; others keep their time, but nobody new can approve them.
func (l *pendings) add(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other := range l.open {
		if other.ticket == p.ticket {
			l.closeLocked(other)
		}
	}
	l.open[p] = true
	l.newest = p
	p.timer = time.AfterFunc(l.wait, func() { l.expire(p) })
}

// again is for a repeat of the answer that p came of: it is not newer than what
// came after it, and its time goes on.
func (l *pendings) again(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newest == nil && !p.over && !p.closed {
		l.newest = p
	}
}

// begin notes that an M3 is under way that may approve p; nil is nothing.
func (l *pendings) begin(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p != nil {
		p.calls++
	}
}

// end goes with begin. As in a session, what ended meanwhile is over only when the
// last answer is in.
func (l *pendings) end(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p != nil {
		p.calls--
		l.settleLocked(p)
	}
}

func (l *pendings) expire(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.over = true
	if l.newest == p {
		l.newest = nil
	}
	l.settleLocked(p)
}

// settleLocked ends the order of what is over. Nothing is acted on after that.
func (l *pendings) settleLocked(p *pending) {
	if !p.over || p.calls != 0 || p.closed {
		return
	}
	l.closeLocked(p)
	if p.ticket.claim() {
		p.ticket.settle(Settlement{Result: ResultExpired, Code: protocol.CodeExpired})
	}
}

// finish is for a final decision on p; nil is nothing.
func (l *pendings) finish(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p != nil {
		l.closeLocked(p)
	}
}

func (l *pendings) closeLocked(p *pending) {
	p.closed = true
	p.timer.Stop()
	delete(l.open, p)
	if l.newest == p {
		l.newest = nil
	}
}

// close is for the end of the relay.
func (l *pendings) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.open {
		l.closeLocked(p)
	}
}

// approved gives what a decision of this session is the final one of; nil if it
// is an ordinary one.
func (s *session) approved(d receipt.Decision) *pending {
	if d.SecondStatement == nil {
		return nil
	}
	return s.second
}

// checkPending holds that a final decision is on what the device knows as pending,
// and a pending one not a final one at the same time: CodeReplayed.
func (s *session) checkPending(d receipt.Decision) error {
	p := s.approved(d)
	switch {
	case p == nil:
		return nil
	case d.Result == protocol.ResultPending:
		return fmt.Errorf("decision of a second approver is pending: %w", protocol.CodeReplayed)
	case d.Statement != p.first.Statement || d.Transaction != p.first.Transaction:
		return fmt.Errorf("decision of a second approver on another statement than transaction %v: %w", p.first.Transaction, protocol.CodeReplayed)
	}
	return nil
}

// wait keeps what an M3 came to for a second approver: the next phones may bring
// one. Nothing is journalled, nothing acted on.
func (r *Relay) wait(s *session, d receipt.Decision, handle []byte) {
	p, isNew := s.waitFor(d, handle)
	if !isNew {
		r.pendings.again(p)
		return
	}
	o := Settlement{Result: d.Result.String(), Code: d.Reason, Decision: &d}
	r.log.Info("awaiting a second approver", "transaction", d.Transaction.String(), "service", uint64(d.Service), "wait", r.config.ApprovalWait.String())
	if handle == nil {
		r.log.Warn("nobody can approve: the answer has no handle", "transaction", d.Transaction.String())
	}
	r.pendings.add(p)
	s.ticket.settle(o)
	r.status.update(o.last())
}

// waitFor gives what the session waits with; isNew is true once.
func (s *session) waitFor(d receipt.Decision, handle []byte) (p *pending, isNew bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits != nil {
		return s.waits, false
	}
	s.isLeft = true
	s.waits = &pending{handle: handle, chal: s.chal, root: s.root, first: d, ticket: s.ticket}
	return s.waits, true
}
