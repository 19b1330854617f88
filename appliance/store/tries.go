package store

import (
	"time"

	"countersign/protocol"
)

// Bounds of password guessing. SP 800-63B §5.2.2 allows 100 consecutive failures;
// a four-digit PIN wants fewer.
const (
	// FreeTries wrong ones in a row within GuardWindow start the back-off.
	FreeTries = 5
	// GuardWindow is how long a wrong try counts towards it.
	GuardWindow = 15 * time.Minute
	// FirstBackOff doubles with each further wrong try, up to MaxBackOff.
	FirstBackOff = 30 * time.Second
	MaxBackOff   = time.Hour
	// HardLock consecutive wrong tries lock the password until an administrator
	// unlocks it.
	HardLock = 20
	// AttemptsPerChallenge is how many passwords one challenge takes.
	AttemptsPerChallenge = 3
)

// Guard is the state of a client's password guard. A try counts as wrong from the
// moment it begins until it is proved right, so that no crash and no race gives a
// guess back. A clock that is set forward shortens a back-off, but not the way to the
// hard lock. The zero value is a guard that nobody has tried.
type Guard struct {
	Wrong  uint32      // consecutive tries that were not right
	Recent []time.Time // of the newest FreeTries of them, oldest first
	Until  time.Time   // no try before; zero: none
}

// Locked tells why no try may begin now: 0 if one may, else [protocol.CodeLocked]
// with the time to wait, which is zero for a hard lock. A caller that tells whole
// seconds has to round up.
func (g Guard) Locked(now time.Time) (protocol.Code, time.Duration) {
	switch {
	case g.Wrong >= HardLock:
		return protocol.CodeLocked, 0
	case now.Before(g.Until):
		return protocol.CodeLocked, g.Until.Sub(now)
	default:
		return 0, 0
	}
}

// begin is the guard after one more try has begun at now.
func (g Guard) begin(now time.Time) Guard {
	next := Guard{Wrong: g.Wrong + 1, Until: g.Until}
	next.Recent = append(append(next.Recent, g.Recent...), Stamp(now))
	if n := len(next.Recent); n > FreeTries {
		next.Recent = next.Recent[n-FreeTries:]
	}
	soon := len(next.Recent) == FreeTries && !next.Recent[0].Before(Stamp(now).Add(-GuardWindow))
	if soon || g.backedOff() {
		next.Until = Stamp(now).Add(g.nextBackOff())
	}
	return next
}

// backedOff: once the back-off has begun, every further wrong try goes on with it.
func (g Guard) backedOff() bool { return !g.Until.IsZero() }

// nextBackOff is twice the last one, which is what lies between the newest try
// and the time until which it locked.
func (g Guard) nextBackOff() time.Duration {
	if !g.backedOff() || len(g.Recent) == 0 {
		return FirstBackOff
	}
	last := g.Until.Sub(g.Recent[len(g.Recent)-1])
	return min(max(2*last, FirstBackOff), MaxBackOff)
}

// left is how many tries may still begin at once, without waiting.
func (g Guard) left(now time.Time) uint64 {
	var left uint64
	for next := g; ; left++ {
		if code, _ := next.Locked(now); code != 0 || left == AttemptsPerChallenge {
			return left
		}
		next = next.begin(now)
	}
}

// Attempt is a password attempt that is about to be checked.
type Attempt struct {
	AnswerKey
	Device protocol.DeviceID // that relayed it; decides nothing
	Now    time.Time
}

// Begun is an attempt in the store.
type Begun struct {
	AnswerKey
	Answered bool // it was answered with "retry"
	// TriesLeft as answered; until then, what Try said it would be.
	TriesLeft uint64
	At        time.Time
}

// Outcome is the answer to the attempt, which was "retry".
func (b Begun) Outcome() Outcome {
	return Outcome{
		Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: b.TriesLeft, At: b.At, Replayed: true,
	}
}

// AttemptView is what the transaction has read for an attempt.
type AttemptView struct {
	Client Client
	Guard  Guard
	// Spent is the decision stored for the serial's counter, if there is one.
	Spent *Spent
	// Begun are the attempts under the serial's counter, by number.
	Begun []Begun
}

// Tried is what became of an attempt.
type Tried struct {
	// Code is 0 if the password may be checked now; else why not: 11 with After,
	// 14 or 23.
	Code  protocol.Code
	After time.Duration // with code 11; 0 is until an administrator unlocks
	// Repeat: this very attempt was begun before.
	Repeat bool
	// Answered: it was answered before, with "retry" and TriesLeft.
	Answered bool
	// TriesLeft if this one is wrong: of the challenge and of the guard. With 0
	// a wrong password is the end of the challenge.
	TriesLeft uint64
	// Wait, if this one is wrong and TriesLeft is 0 because of the guard: until
	// the next try; 0 is until unlocked. Guarded tells that it is the guard.
	Guarded bool
	Wait    time.Duration
	// Guard and Begun to store; nil to leave them.
	Guard *Guard
	Begun *Begun
}

// Conclude decides within the transaction; it is the same for every driver.
func (a Attempt) Conclude(v AttemptView) Tried {
	if b := a.among(v.Begun); b != nil {
		t := a.begun(v.Guard)
		// As it was told, or decided, the first time: two who check the same
		// attempt must come to the same end.
		t.Repeat, t.Answered, t.TriesLeft = true, b.Answered, b.TriesLeft
		return t
	}
	if code := a.conflict(v); code != 0 {
		return Tried{Code: code}
	}
	if code, after := v.Guard.Locked(a.Now); code != 0 {
		return Tried{Code: code, After: after}
	}
	next := v.Guard.begin(a.Now)
	t := a.begun(next)
	t.Guard, t.Begun = &next, &Begun{AnswerKey: a.AnswerKey, TriesLeft: t.TriesLeft, At: Stamp(a.Now)}
	return t
}

// begun fills in what is left after this try, given the guard that counts it.
func (a Attempt) begun(g Guard) Tried {
	challenge := uint64(AttemptsPerChallenge-1) - min(uint64(a.Attempt), AttemptsPerChallenge-1)
	guard := g.left(a.Now)
	t := Tried{TriesLeft: min(challenge, guard)}
	if guard == 0 {
		_, t.Wait = g.Locked(a.Now)
		t.Guarded = true
	}
	return t
}

func (a Attempt) conflict(v AttemptView) protocol.Code {
	if code := a.spent(v.Spent, v.Client); code != 0 {
		return code
	}
	return a.outOfTurn(v.Begun)
}

// spent tells whether the serial's counter was spent before.
func (k AnswerKey) spent(by *Spent, c Client) protocol.Code {
	switch {
	case by != nil && by.Serial != k.Serial:
		return protocol.CodeClone
	case by != nil, int64(k.Serial.Counter()) <= c.Highest:
		return protocol.CodeSerial
	default:
		return 0
	}
}

// among finds the attempt that was begun with the same bytes.
func (k AnswerKey) among(begun []Begun) *Begun {
	for i := range begun {
		if begun[i].AnswerKey == k {
			return &begun[i]
		}
	}
	return nil
}

// outOfTurn: attempt n is taken only after n-1 was answered with "retry", and at
// most three per challenge; the same attempt with other bytes is not.
func (k AnswerKey) outOfTurn(begun []Begun) protocol.Code {
	answered := 0
	for _, b := range begun {
		if b.Serial != k.Serial {
			return protocol.CodeClone
		}
		if b.Answered {
			answered++
		}
	}
	if n := int(k.Attempt); n >= AttemptsPerChallenge || n != len(begun) || n != answered {
		return protocol.CodeSerial
	}
	return 0
}
