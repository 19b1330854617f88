package store

import (
	"slices"
	"time"

	"countersign/protocol"
)

// Limits on password guessing. SP 800-63B §5.2.2 allows 100 consecutive failures; a four-digit PIN
// needs fewer.
const (
	// FreeTries wrong passwords in a row within GuardWindow start the back-off.
	FreeTries = 5
	// GuardWindow is how long a wrong password counts towards it.
	GuardWindow = 15 * time.Minute
	// FirstBackOff doubles with each further wrong password, up to MaxBackOff.
	FirstBackOff = 30 * time.Second
	MaxBackOff   = time.Hour
	// HardLock consecutive wrong passwords lock the password until an administrator unlocks it.
	HardLock = 20
	// AttemptsPerChallenge is the number of passwords that one challenge allows.
	AttemptsPerChallenge = 3
)

// Guard is the password guard of a client. An attempt counts as wrong from its beginning until it
// is proved right, so that no crash and no race gives a guess back. A clock that is set forward
// shortens a back-off, but does not delay the hard lock. The zero value is the guard of a new
// client.
type Guard struct {
	Wrong  uint32      // consecutive tries that were not right
	Recent []time.Time // of the newest FreeTries of them, oldest first
	Until  time.Time   // no try before; zero: none
}

// Locked returns 0 if an attempt may begin now, else [protocol.CodeLocked] with the time to wait,
// which is zero for a hard lock. A caller that reports whole seconds has to round up.
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

// begin returns the guard after one more attempt at now.
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

// without returns the guard without an attempt that was not checked. If other attempts began since, their
// back-off stays. A guard that does not list the attempt stays as it is: it was reset since, or FreeTries others began.
func (g Guard) without(t Tried) Guard {
	if g.equal(*t.Guard) {
		return t.Before
	}
	next := Guard{Wrong: max(g.Wrong, 1) - 1, Until: g.Until, Recent: slices.Clone(g.Recent)}
	i := slices.IndexFunc(next.Recent, t.Begun.At.Equal)
	if i < 0 {
		return g
	}
	next.Recent = slices.Delete(next.Recent, i, i+1)
	return next
}

func (g Guard) equal(o Guard) bool {
	return g.Wrong == o.Wrong && g.Until.Equal(o.Until) && slices.EqualFunc(g.Recent, o.Recent, time.Time.Equal)
}

// backedOff reports whether the back-off has begun. Every further wrong password continues it.
func (g Guard) backedOff() bool { return !g.Until.IsZero() }

// nextBackOff is twice the last back-off, which is the time from the newest attempt to the end of
// the lock.
func (g Guard) nextBackOff() time.Duration {
	if !g.backedOff() || len(g.Recent) == 0 {
		return FirstBackOff
	}
	last := g.Until.Sub(g.Recent[len(g.Recent)-1])
	return min(max(2*last, FirstBackOff), MaxBackOff)
}

// left returns how many attempts may still begin without waiting.
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
	// TriesLeft is the number in the answer; until there is one, the number that Try returned.
	TriesLeft uint64
	At        time.Time
}

// Outcome returns the answer to the attempt, "retry".
func (b Begun) Outcome() Outcome {
	return Outcome{
		Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: b.TriesLeft, At: b.At, Replayed: true,
	}
}

// AttemptView is the content of the store that an attempt depends on, read in the transaction.
type AttemptView struct {
	Client Client
	Guard  Guard
	// Spent is the decision stored for the serial's counter, if there is one.
	Spent *Spent
	// Begun are the attempts under the serial's counter, by number.
	Begun []Begun
}

// Tried is the result of an attempt.
type Tried struct {
	// Code is 0 if the password may be checked now, else the reason: 11 with After, 14 or 23.
	Code  protocol.Code
	After time.Duration // with code 11; 0 is until an administrator unlocks
	// Repeat reports that this very attempt was begun before.
	Repeat bool
	// Answered: it was answered before, with "retry" and TriesLeft.
	Answered bool
	// TriesLeft if this one is wrong: of the challenge and of the guard. With 0
	// a wrong password is the end of the challenge.
	TriesLeft uint64
	// Wait is the time until the next attempt if this one is wrong and the guard, not the
	// challenge, leaves no tries (Guarded); 0 is until an administrator unlocks the password.
	Guarded bool
	Wait    time.Duration
	// Guard and Begun are to be stored; nil leaves them as they are. Before is the guard that
	// Guard replaces.
	Guard  *Guard
	Begun  *Begun
	Before Guard
}

// Conclude decides within the transaction. It is the same for every driver.
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
	t.Before, t.Guard, t.Begun = v.Guard, &next, &Begun{AnswerKey: a.AnswerKey, TriesLeft: t.TriesLeft, At: Stamp(a.Now)}
	return t
}

// begun returns the tries left after this attempt, given the guard that counts it.
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

// spent returns why the counter of the serial cannot be spent any more, or 0.
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

// among finds the attempt with the same bytes.
func (k AnswerKey) among(begun []Begun) *Begun {
	for i := range begun {
		if begun[i].AnswerKey == k {
			return &begun[i]
		}
	}
	return nil
}

// outOfTurn returns why an attempt is not the next one: attempt n needs an attempt n-1 that was
// answered "retry", a challenge allows three, and other bytes under a number that is used are
// refused.
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
