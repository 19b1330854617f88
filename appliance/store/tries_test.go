package store

import (
	"reflect"
	"testing"
	"time"

	"countersign/protocol"
)

// base is a whole microsecond.
var base = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// step is a try some time after the one before.
type step struct {
	after time.Duration
	until time.Duration // the back-off that this try starts; 0: none
}

func repeated(n int, s step) []step {
	all := make([]step, n)
	for i := range all {
		all[i] = s
	}
	return all
}

func TestGuardBegin(t *testing.T) {
	const window, second = GuardWindow / (FreeTries - 1), time.Second
	doubling := []step{
		{0, 30 * second},
		{30 * second, 60 * second},
		{60 * second, 120 * second},
		{120 * second, 240 * second},
		{240 * second, 480 * second},
		{480 * second, 960 * second},
		{960 * second, 1920 * second},
		{1920 * second, time.Hour},
		{time.Hour, time.Hour},
	}
	for name, steps := range map[string][]step{
		"four at once":               repeated(4, step{}),
		"five at once, and on":       append(repeated(4, step{}), doubling...),
		"five within the window":     {{}, {window, 0}, {window, 0}, {window, 0}, {window, 30 * second}},
		"five, just too slow":        append([]step{{}}, repeated(9, step{window + time.Microsecond, 0})...),
		"slow, then fast":            append(repeated(12, step{301 * second, 0}), step{0, 0}, step{0, 30 * second}),
		"back-off goes on for ever":  append(append(repeated(4, step{}), step{0, 30 * second}), step{24 * time.Hour, 60 * second}, step{240 * time.Hour, 120 * second}),
		"begun before it was over":   append(append(repeated(4, step{}), step{0, 30 * second}), step{0, 60 * second}),
		"clock set back in between":  append(append(repeated(4, step{}), step{-time.Hour, 30 * second}), step{-time.Hour, 60 * second}),
		"clock set far forward once": append(repeated(4, step{}), step{10000 * time.Hour, 0}),
	} {
		g, now := Guard{}, base
		for i, s := range steps {
			now = now.Add(s.after)
			before := g
			recent := append([]time.Time{}, g.Recent...)
			g = g.begin(now.In(time.FixedZone("", 7200)))
			want := before.Until
			if s.until != 0 {
				want = now.Add(s.until)
			}
			if g.Wrong != uint32(i+1) || !g.Until.Equal(want) {
				t.Errorf("%s: try %d: %+v, want until %v", name, i+1, g, want)
			}
			if n := len(g.Recent); n != min(i+1, FreeTries) || g.Recent[n-1] != now {
				t.Errorf("%s: try %d: recent %v", name, i+1, g.Recent)
			}
			if len(recent) != 0 && !reflect.DeepEqual(before.Recent, recent) {
				t.Errorf("%s: try %d changed the guard before it", name, i+1)
			}
		}
	}
}

func TestGuardLocked(t *testing.T) {
	for _, c := range []struct {
		name  string
		guard Guard
		after time.Duration // since base
		code  protocol.Code
		wait  time.Duration
		left  uint64
	}{
		{"nobody tried", Guard{}, 0, 0, 0, 3},
		{"one wrong", Guard{Wrong: 1, Recent: []time.Time{base}}, 0, 0, 0, 3},
		{"two wrong", Guard{Wrong: 2, Recent: []time.Time{base, base}}, 0, 0, 0, 3},
		{"three wrong", Guard{Wrong: 3, Recent: []time.Time{base, base, base}}, 0, 0, 0, 2},
		{"four wrong", Guard{Wrong: 4, Recent: []time.Time{base, base, base, base}}, 0, 0, 0, 1},
		{"four wrong, long ago", Guard{Wrong: 4, Recent: []time.Time{base, base, base, base}}, time.Hour, 0, 0, 3},
		{"back-off", Guard{Wrong: 5, Until: base}, -time.Nanosecond, protocol.CodeLocked, time.Nanosecond, 0},
		{"back-off is over", Guard{Wrong: 5, Until: base, Recent: []time.Time{base.Add(-FirstBackOff)}}, 0, 0, 0, 1},
		{"19 wrong", Guard{Wrong: 19}, 0, 0, 0, 1},
		{"18 wrong", Guard{Wrong: 18}, 0, 0, 0, 2},
		{"hard lock", Guard{Wrong: 20}, 0, protocol.CodeLocked, 0, 0},
		{"hard lock within a back-off", Guard{Wrong: 20, Until: base.Add(time.Hour)}, 0, protocol.CodeLocked, 0, 0},
		{"beyond the hard lock", Guard{Wrong: 1 << 31}, 0, protocol.CodeLocked, 0, 0},
	} {
		now := base.Add(c.after)
		if code, wait := c.guard.Locked(now); code != c.code || wait != c.wait {
			t.Errorf("%s: locked %v for %v, want %v for %v", c.name, code, wait, c.code, c.wait)
		}
		if left := c.guard.left(now); left != c.left {
			t.Errorf("%s: %d left, want %d", c.name, left, c.left)
		}
	}
}

// The wait never shrinks, and 20 tries is all that any patience gets.
func TestGuardPatience(t *testing.T) {
	for _, pause := range []time.Duration{0, time.Second, 3 * time.Minute, 4 * time.Minute, time.Hour, 1000 * time.Hour} {
		g, now, n := Guard{}, base, 0
		var last time.Duration
		for ; ; n++ {
			code, wait := g.Locked(now)
			if code != 0 && wait == 0 {
				break
			}
			if wait < 0 || wait > MaxBackOff {
				t.Fatalf("pause %v: wait %v", pause, wait)
			}
			now = now.Add(wait)
			g = g.begin(now)
			if backOff := g.Until.Sub(now); !g.Until.IsZero() {
				if backOff < last {
					t.Fatalf("pause %v: the back-off fell from %v to %v", pause, last, backOff)
				}
				last = backOff
			}
			now = now.Add(pause)
		}
		if n != HardLock {
			t.Errorf("pause %v: %d tries", pause, n)
		}
	}
}

func sampleAttempt(n uint8) Attempt {
	return Attempt{
		AnswerKey: AnswerKey{Client: protocol.ClientID{1}, Serial: protocol.NewSerial(7, [8]byte{7}), Attempt: n, M3: [32]byte{n}},
		Now:       base,
	}
}

// answeredTries are the first n attempts, all answered.
func answeredTries(n int) []Begun {
	var all []Begun
	for i := range n {
		all = append(all, Begun{AnswerKey: sampleAttempt(uint8(i)).AnswerKey, Answered: true, TriesLeft: uint64(2 - i), At: base})
	}
	return all
}

func changed(all []Begun, change func(*Begun)) []Begun {
	change(&all[len(all)-1])
	return all
}

func otherSerial(b *Begun) { b.Serial[11]++ }
func unanswered(b *Begun)  { b.Answered = false }
func otherBytes(b *Begun)  { b.M3[31]++ }

func TestAttemptConclude(t *testing.T) {
	spent := &Spent{AnswerKey: sampleAttempt(0).AnswerKey}
	other := &Spent{AnswerKey: sampleAttempt(0).AnswerKey}
	other.Serial[11]++
	hard, soft := Guard{Wrong: HardLock}, Guard{Wrong: 5, Until: base.Add(time.Second), Recent: []time.Time{base}}
	const clones, serial, locked = protocol.CodeClone, protocol.CodeSerial, protocol.CodeLocked
	for _, c := range []struct {
		name    string
		attempt uint8
		view    AttemptView
		want    Tried
	}{
		{"first", 0, AttemptView{}, Tried{TriesLeft: 2}},
		{"second", 1, AttemptView{Begun: answeredTries(1)}, Tried{TriesLeft: 1}},
		{"third", 2, AttemptView{Begun: answeredTries(2)}, Tried{TriesLeft: 0}},
		{"fourth", 3, AttemptView{Begun: answeredTries(3)}, Tried{Code: serial}},
		{"none before", 1, AttemptView{}, Tried{Code: serial}},
		{"one left out", 2, AttemptView{Begun: answeredTries(1)}, Tried{Code: serial}},
		{"far off", 255, AttemptView{}, Tried{Code: serial}},
		{"before is not answered", 1, AttemptView{Begun: changed(answeredTries(1), unanswered)}, Tried{Code: serial}},
		{"other bytes", 0, AttemptView{Begun: changed(answeredTries(1), otherBytes)}, Tried{Code: serial}},
		{"other random part", 1, AttemptView{Begun: changed(answeredTries(1), otherSerial)}, Tried{Code: clones}},
		{"other random part, same number", 0, AttemptView{Begun: changed(answeredTries(1), otherSerial)}, Tried{Code: clones}},
		{"spent", 0, AttemptView{Spent: spent, Client: Client{Highest: 7}}, Tried{Code: serial}},
		{"spent by another", 0, AttemptView{Spent: other, Client: Client{Highest: 7}}, Tried{Code: clones}},
		{"below the highest", 0, AttemptView{Client: Client{Highest: 7}}, Tried{Code: serial}},
		{"locked", 0, AttemptView{Guard: soft}, Tried{Code: locked, After: time.Second}},
		{"locked for good", 1, AttemptView{Guard: hard, Begun: answeredTries(1)}, Tried{Code: locked}},
		{"spent and locked", 0, AttemptView{Guard: hard, Spent: spent}, Tried{Code: serial}},
		{"third of the free", 0, AttemptView{Guard: Guard{Wrong: 2, Recent: []time.Time{base, base}}}, Tried{TriesLeft: 2}},
		{"fourth of the free", 0, AttemptView{Guard: Guard{Wrong: 3, Recent: []time.Time{base, base, base}}}, Tried{TriesLeft: 1}},
		{
			"last of the free", 0,
			AttemptView{Guard: Guard{Wrong: 4, Recent: []time.Time{base, base, base, base}}},
			Tried{Guarded: true, Wait: FirstBackOff},
		},
		{"last of all", 0, AttemptView{Guard: Guard{Wrong: 19}}, Tried{Guarded: true}},
		{"repeat", 0, AttemptView{Begun: changed(answeredTries(1), unanswered)}, Tried{Repeat: true, TriesLeft: 2}},
		{"repeat, answered", 1, AttemptView{Begun: answeredTries(3)}, Tried{Repeat: true, Answered: true, TriesLeft: 1}},
		{"repeat, spent", 0, AttemptView{Begun: answeredTries(1), Spent: spent}, Tried{Repeat: true, Answered: true, TriesLeft: 2}},
		{"repeat, locked", 0, AttemptView{Begun: answeredTries(1), Guard: hard}, Tried{Repeat: true, Answered: true, TriesLeft: 2, Guarded: true}},
	} {
		if c.view.Client.Highest == 0 {
			c.view.Client.Highest = 6
		}
		a := sampleAttempt(c.attempt)
		got := a.Conclude(c.view)
		if fresh := c.want.Code == 0 && !c.want.Repeat; fresh {
			next := c.view.Guard.begin(base)
			c.want.Guard, c.want.Before = &next, c.view.Guard
			c.want.Begun = &Begun{AnswerKey: a.AnswerKey, TriesLeft: c.want.TriesLeft, At: base}
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

// TestBackOffWithoutRecent: a guard whose recent tries are not known continues its back-off with the first one.
func TestBackOffWithoutRecent(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for name, c := range map[string]struct {
		guard Guard
		want  time.Duration
	}{
		"recent tries unknown":   {Guard{Wrong: FreeTries, Until: now.Add(-time.Hour)}, FirstBackOff},
		"the last was FirstBack": {Guard{Wrong: FreeTries, Until: now.Add(FirstBackOff - time.Hour), Recent: []time.Time{now.Add(-time.Hour)}}, 2 * FirstBackOff},
		"none yet":               {Guard{}, 0},
	} {
		got := Attempt{Now: now}.Conclude(AttemptView{Guard: c.guard, Client: Client{Highest: -1}})
		if got.Code != 0 || got.Guard == nil {
			t.Fatalf("%s: %+v", name, got)
		}
		if code, wait := got.Guard.Locked(now); wait != c.want || (code != 0) != (c.want != 0) {
			t.Errorf("%s: locked for %v, code %d; want %v", name, wait, code, c.want)
		}
	}
}
