package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

var tryTests = map[string]func(*testing.T, *fixture){
	"Try":              testTry,
	"TryRepeat":        testTryRepeat,
	"TryOrder":         testTryOrder,
	"TrySpent":         testTrySpent,
	"TryBackOff":       testTryBackOff,
	"TryHardLock":      testTryHardLock,
	"TryUnknown":       testTryUnknown,
	"TryRight":         testTryRight,
	"TryNotRight":      testTryNotRight,
	"TryThenSpend":     testTryThenSpend,
	"SpendOutOfTurn":   testSpendOutOfTurn,
	"TakeBack":         testTakeBack,
	"TakeBackBeside":   testTakeBackBeside,
	"TakeBackLate":     testTakeBackLate,
	"TakeBackRefused":  testTakeBackRefused,
	"ConcurrentTries":  testConcurrentTries,
	"ConcurrentRounds": testConcurrentRounds,
	"ConcurrentRepeat": testConcurrentRepeat,
}

func testTry(t *testing.T, f *fixture) {
	f.same(f.guard(), store.Guard{})
	before := f.tally()
	a := f.p.Attempt(5)
	a.Now = a.Now.In(time.FixedZone("", 3600)).Add(789)
	tried := f.begins(a)
	if tried.TriesLeft != 2 || tried.Guarded {
		t.Fatalf("first try: %+v", tried)
	}
	f.same(f.guard(), store.Guard{Wrong: 1, Recent: []time.Time{Epoch}}) // before anybody said that it is wrong
	f.same(f.tally(), before)
	if got := f.highest(); got != -1 {
		t.Fatalf("a try spent counter %d", got)
	}
	rec := f.p.Spend(5).Refused(protocol.CodePassword)
	f.must(f.Wrong(t.Context(), a.AnswerKey, 2, rec))
	all := f.records()
	rec.Sequence = uint64(len(all))
	f.same(all[len(all)-1], rec)
	if rec.Kind != audit.KindRefused || rec.Words()["reason"] != uint64(protocol.CodePassword) {
		t.Fatalf("record %+v: %v", rec, rec.Words())
	}
	f.same(f.guard().Wrong, uint32(1))

	second := Next(a)
	second.Now = Epoch.Add(time.Minute)
	if tried := f.begins(second); tried.TriesLeft != 1 {
		t.Fatalf("second try: %+v", tried)
	}
	f.same(f.guard(), store.Guard{Wrong: 2, Recent: []time.Time{Epoch, Epoch.Add(time.Minute)}})
	q, err := Seed(t.Context(), f.Store, "bob")
	f.must(err)
	other, err := f.Guard(t.Context(), q.Client.ID)
	f.must(err)
	f.same(other, store.Guard{})
}

// An attempt is counted once and answered once.
func testTryRepeat(t *testing.T, f *fixture) {
	a := f.p.Attempt(5)
	f.begins(a)
	for n := range uint32(2) { // others in between change nothing of it
		f.begins(f.p.Attempt(6 + n))
	}
	g := f.guard()
	late := a
	late.Now = Epoch.Add(time.Hour)
	if tried := f.try(late); !tried.Repeat || tried.Answered || tried.Code != 0 || tried.TriesLeft != 2 {
		t.Fatalf("repeat before the answer: %+v", tried)
	}
	_, err := f.Answered(t.Context(), a.AnswerKey)
	f.fails(err, store.ErrNotFound)

	f.wrong(a, 2)
	before := f.tally()
	f.wrong(a, 1) // the first answer stands
	f.same(f.tally(), before)
	if tried := f.try(a); !tried.Repeat || !tried.Answered || tried.TriesLeft != 2 {
		t.Fatalf("repeat after the answer: %+v", tried)
	}
	f.same(f.guard(), g)

	want := store.Outcome{Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: 2, At: Epoch, Replayed: true}
	for range 2 {
		got, err := f.Answered(t.Context(), a.AnswerKey)
		f.must(err)
		f.same(got, want)
		f.approves(f.p.Spend(f.next())) // even after further decisions
	}
}

func testTryOrder(_ *testing.T, f *fixture) {
	a := f.p.Attempt(5)
	second := Next(a)
	third := Next(second)
	f.refusesTry(second, protocol.CodeSerial)
	f.begins(a)
	otherBytes, clone, cloneSecond := a, f.p.Attempt(5), Next(f.p.Attempt(5))
	otherBytes.M3[0]++
	f.refusesTry(otherBytes, protocol.CodeSerial)
	f.refusesTry(clone, protocol.CodeClone)
	f.refusesTry(cloneSecond, protocol.CodeClone)
	f.refusesTry(second, protocol.CodeSerial) // 0 was not answered
	f.wrong(a, 2)
	f.refusesTry(third, protocol.CodeSerial)
	f.refusesTry(otherBytes, protocol.CodeSerial)
	f.begins(second)
	f.refusesTry(third, protocol.CodeSerial)
	f.wrong(second, 1)
	f.begins(third)
	f.wrong(third, 0)
	fourth, far := Next(third), third
	far.AnswerKey.Attempt = 255
	far.M3[0]++
	f.refusesTry(fourth, protocol.CodeSerial)
	f.refusesTry(far, protocol.CodeSerial)
	f.same(f.guard().Wrong, uint32(3))
}

func testTrySpent(t *testing.T, f *fixture) {
	a := f.p.Attempt(5)
	f.begins(a)
	f.wrong(a, 2)
	s := f.p.Spend(5)
	s.AnswerKey = Next(a).AnswerKey
	f.spend(denied(s, protocol.CodeUserRefused), protocol.CodeUserRefused)
	again := Next(a)
	f.refusesTry(again, protocol.CodeSerial)
	f.refusesTry(f.p.Attempt(5), protocol.CodeClone)
	f.refusesTry(f.p.Attempt(4), protocol.CodeSerial)
	if tried := f.try(a); !tried.Answered || tried.TriesLeft != 2 {
		t.Fatalf("an attempt that was answered: %+v", tried)
	}
	f.begins(f.p.Attempt(6))
}

func denied(s store.Spend, code protocol.Code) store.Spend {
	s.Denial = code
	return s
}

// Five wrong ones in a row start a back-off that doubles up to an hour.
func testTryBackOff(t *testing.T, f *fixture) {
	at, counter := Epoch, uint32(0)
	try := func() store.Attempt {
		a := f.p.Attempt(counter)
		a.Now = at
		counter++
		return a
	}
	for n, left := range []uint64{2, 2, 2, 1} {
		if tried := f.begins(try()); tried.TriesLeft != left || tried.Guarded {
			t.Fatalf("try %d: %+v", n, tried)
		}
		at = at.Add(store.GuardWindow / 4) // the fifth is at the end of the window
	}
	for n, wait := range []time.Duration{30, 60, 120, 240, 480, 960, 1920, 3600, 3600} {
		tried := f.begins(try())
		wait *= time.Second
		if tried.TriesLeft != 0 || !tried.Guarded || tried.Wait != wait {
			t.Fatalf("back-off %d: %+v, want %v", n, tried, wait)
		}
		began := at
		at = began.Add(wait - time.Microsecond)
		if tried := f.refusesTry(try(), protocol.CodeLocked); tried.After != time.Microsecond {
			t.Fatalf("back-off %d: locked for %v", n, tried.After)
		}
		at = began.Add(wait)
	}
}

func testTryHardLock(t *testing.T, f *fixture) {
	at := Epoch
	counter := uint32(0)
	try := func() store.Attempt {
		if f.guard().Wrong >= store.FreeTries {
			at = at.Add(24 * time.Hour)
		}
		counter++
		a := f.p.Attempt(counter)
		a.Now = at
		return a
	}
	for range 2 {
		for n := range store.HardLock {
			if tried := f.begins(try()); tried.Guarded != (n >= store.FreeTries-1) {
				t.Fatalf("try %d: %+v", n, tried)
			}
		}
		at = at.Add(365 * 24 * time.Hour)
		if tried := f.refusesTry(try(), protocol.CodeLocked); tried.After != 0 {
			t.Fatalf("locked for %v", tried.After)
		}
		before := f.tally()
		f.must(f.Unlock(t.Context(), f.p.Client.ID, audit.NewRecord(audit.KindUnlock, "client/alice", nil)))
		before.Records++
		f.same(f.tally(), before)
		f.same(f.guard(), store.Guard{})
	}
}

func testTryUnknown(t *testing.T, f *fixture) {
	stranger := f.p.Attempt(1)
	stranger.Client[0]++
	begun := f.p.Attempt(1)
	f.begins(begun)
	f.unchanged(store.ErrNotFound, func() error {
		_, err := f.Try(t.Context(), stranger)
		return err
	})
	f.unchanged(store.ErrNotFound, func() error { return f.Unlock(t.Context(), stranger.Client, Note("")) })
	_, err := f.Guard(t.Context(), stranger.Client)
	f.fails(err, store.ErrNotFound)
	for name, change := range map[string]func(*store.AnswerKey){
		"client":  func(k *store.AnswerKey) { k.Client[0]++ },
		"counter": func(k *store.AnswerKey) { k.Serial[3]++ },
		"serial":  func(k *store.AnswerKey) { k.Serial[11]++ },
		"attempt": func(k *store.AnswerKey) { k.Attempt++ },
		"m3":      func(k *store.AnswerKey) { k.M3[31]++ },
	} {
		key := begun.AnswerKey
		change(&key)
		t.Log(name)
		f.unchanged(store.ErrNotFound, func() error { return f.Wrong(t.Context(), key, 2, Note("")) })
	}
	f.wrong(begun, 2)
}

// A right password resets the guard, with any outcome of its serial.
func testTryRight(t *testing.T, f *fixture) {
	right := func(counter uint32) store.Spend {
		t.Helper()
		f.begins(f.p.Attempt(counter))
		a := f.p.Attempt(counter + 1)
		f.begins(a)
		s := f.p.Spend(counter + 1)
		s.AnswerKey, s.Right = a.AnswerKey, true
		return s
	}
	for n := range uint32(2) {
		f.begins(f.p.Attempt(90 + n))
	}
	g := f.guard()
	s := right(1)
	if g.Wrong != 2 || f.guard().Wrong != 4 {
		t.Fatalf("guard %+v, then %+v", g, f.guard())
	}
	f.approves(s)
	f.same(f.guard(), store.Guard{})
	f.begins(f.p.Attempt(3))
	f.spend(s, 0) // a repeat gives nothing back
	f.same(f.guard().Wrong, uint32(1))

	f.spend(denied(right(10), protocol.CodePolicy), protocol.CodePolicy)
	f.same(f.guard(), store.Guard{})
	dry := right(20)
	dry.Dry = true
	f.concludes(dry, protocol.ResultApproved, 0)
	f.same(f.guard(), store.Guard{})
}

// An attempt that was taken back was never begun: neither guard nor challenge show it.
func testTakeBack(t *testing.T, f *fixture) {
	for n := range uint32(store.FreeTries - 1) {
		f.begins(f.p.Attempt(50 + n))
	}
	g := f.guard()
	a := f.p.Attempt(5)
	for range 3 {
		tried := f.begins(a) // the one that starts the back-off
		if tried.TriesLeft != 0 || f.guard().Until.IsZero() {
			t.Fatalf("try %+v, guard %+v", tried, f.guard())
		}
		f.must(f.TakeBack(t.Context(), a.AnswerKey, tried))
		f.same(f.guard(), g)
	}
	other := f.p.Attempt(5)
	other.M3[0]++
	f.begins(other) // the challenge takes another M3 in its place
}

// What other attempts count, stays.
func testTakeBackBeside(t *testing.T, f *fixture) {
	a := f.p.Attempt(5)
	tried := f.begins(a)
	for n := range time.Duration(store.FreeTries - 1) {
		b := f.p.Attempt(uint32(50 + n))
		b.Now = b.Now.Add(n * time.Second)
		f.begins(b)
	}
	before := f.guard()
	f.must(f.TakeBack(t.Context(), a.AnswerKey, tried))
	if g := f.guard(); g.Wrong != before.Wrong-1 || len(g.Recent) != store.FreeTries-1 || !g.Until.Equal(before.Until) {
		t.Fatalf("guard %+v, then %+v", before, g)
	}
	f.must(f.Unlock(t.Context(), f.p.Client.ID, Note("unlocked")))
	b := f.p.Attempt(6)
	tried = f.begins(b)
	f.must(f.Unlock(t.Context(), f.p.Client.ID, Note("unlocked")))
	f.must(f.TakeBack(t.Context(), b.AnswerKey, tried))
	f.same(f.guard(), store.Guard{})
}

// After the guard was reset, an attempt from before takes no later wrong password with it.
func testTakeBackLate(t *testing.T, f *fixture) {
	for n, reset := range []func(){
		func() { f.must(f.Unlock(t.Context(), f.p.Client.ID, Note("unlocked"))) },
		func() {
			a := f.p.Attempt(15)
			f.begins(a)
			s := f.p.Spend(15)
			s.AnswerKey, s.Right = a.AnswerKey, true
			f.approves(s)
		},
	} {
		a, b := f.p.Attempt(uint32(20+2*n)), f.p.Attempt(uint32(21+2*n))
		tried := f.begins(a)
		reset()
		f.same(f.guard(), store.Guard{})
		b.Now = b.Now.Add(time.Minute)
		f.begins(b)
		f.must(f.TakeBack(t.Context(), a.AnswerKey, tried))
		f.same(f.guard(), store.Guard{Wrong: 1, Recent: []time.Time{Epoch.Add(time.Minute)}})
		f.begins(a) // only the guard keeps the later one: the challenge is free again
		f.must(f.Unlock(t.Context(), f.p.Client.ID, Note("unlocked")))
	}
}

// An attempt that was answered or decided, is not the newest or was never begun, stays counted.
func testTakeBackRefused(t *testing.T, f *fixture) {
	refused := func(a store.Attempt, tried store.Tried) {
		t.Helper()
		before := f.guard()
		f.unchanged(store.ErrNotFound, func() error { return f.TakeBack(t.Context(), a.AnswerKey, tried) })
		f.same(f.guard(), before)
	}
	a := f.p.Attempt(5)
	refused(a, store.Tried{})
	tried := f.begins(a)
	otherBytes := a
	otherBytes.M3[0]++
	refused(otherBytes, tried)
	refused(a, f.try(a)) // a repeat began nothing
	f.wrong(a, 2)
	refused(a, tried)
	second := Next(a)
	triedSecond := f.begins(second)
	refused(a, tried)
	f.must(f.TakeBack(t.Context(), second.AnswerKey, triedSecond))
	refused(second, triedSecond)
	triedSecond = f.begins(second)
	s := f.p.Spend(5)
	s.AnswerKey = second.AnswerKey
	f.approves(s)
	refused(second, triedSecond)
}

func testTryNotRight(_ *testing.T, f *fixture) {
	a := f.p.Attempt(5)
	f.begins(a)
	f.approves(f.p.Spend(4)) // no password, or not this one
	f.same(f.guard().Wrong, uint32(1))
	clone := f.p.Spend(5)
	clone.Right = true
	f.spend(clone, protocol.CodeClone)
	spent := f.p.Spend(4)
	spent.Right = true
	f.spend(spent, protocol.CodeClone)
	f.same(f.guard().Wrong, uint32(1))
	s := denied(f.p.Spend(5), protocol.CodePassword)
	s.AnswerKey = a.AnswerKey
	f.spend(s, protocol.CodePassword)
	f.same(f.guard().Wrong, uint32(1))
}

// The attempt that spends its serial is answered by the decision, and by nothing else.
func testTryThenSpend(t *testing.T, f *fixture) {
	s := f.third(5)
	f.begins(store.Attempt{AnswerKey: s.AnswerKey, Now: Epoch})
	s.Right = true
	out := f.approves(s)
	got, err := f.Answered(t.Context(), s.AnswerKey)
	f.must(err)
	out.Replayed = true
	f.same(got, out)
	f.unchanged(store.ErrNotFound, func() error { return f.Wrong(t.Context(), s.AnswerKey, 1, Note("")) })
}

// Attempts have their order when they come without a password too.
func testSpendOutOfTurn(_ *testing.T, f *fixture) {
	a := f.p.Attempt(5)
	under := func(k store.AnswerKey) store.Spend {
		s := f.p.Spend(5)
		s.AnswerKey = k
		return s
	}
	second := Next(a)
	f.spend(under(second.AnswerKey), protocol.CodeSerial) // nothing was answered "retry"
	f.begins(a)
	f.spend(under(second.AnswerKey), protocol.CodeSerial)
	otherBytes := a.AnswerKey
	otherBytes.M3[0]++
	f.spend(under(otherBytes), protocol.CodeSerial)
	f.wrong(a, 2)
	f.spend(under(otherBytes), protocol.CodeSerial)
	before := f.tally()
	again := f.concludes(under(a.AnswerKey), protocol.ResultRetry, protocol.CodePassword)
	if !again.Replayed || again.TriesLeft != 2 {
		f.t.Fatalf("what was answered %q: %+v", "retry", again)
	}
	f.same(f.tally(), before)
	f.same(f.highest(), int64(-1))
	f.approves(under(second.AnswerKey))
}

// However many guess at once, no more begin than may.
func testConcurrentTries(t *testing.T, f *fixture) {
	for _, tried := range together(64, func(i int) error {
		tried, err := f.Try(t.Context(), f.p.Attempt(uint32(i)))
		if err == nil && tried.Code != 0 && (tried.Code != protocol.CodeLocked || tried.After != store.FirstBackOff) {
			t.Errorf("try %d: %+v", i, tried)
		}
		return err
	}) {
		f.must(tried)
	}
	g := f.guard()
	if g.Wrong != store.FreeTries || !g.Until.Equal(Epoch.Add(store.FirstBackOff)) {
		t.Fatalf("64 guessers at once began %+v", g)
	}
}

// Not even if each waits as long as it must.
func testConcurrentRounds(t *testing.T, f *fixture) {
	begun := 0
	for round := range 40 {
		last := f.guard().Wrong
		now := Epoch.Add(time.Duration(round) * store.MaxBackOff)
		for _, code := range together(64, func(i int) protocol.Code {
			a := f.p.Attempt(uint32(64*round + i))
			a.Now = now
			tried, err := f.Try(t.Context(), a)
			if err != nil {
				t.Error(err)
			}
			return tried.Code
		}) {
			if code == 0 {
				begun++
			}
		}
		if g := f.guard(); g.Wrong < last || int(g.Wrong) != begun {
			t.Fatalf("round %d: guard %+v after %d, %d begun", round, g, last, begun)
		}
	}
	if begun != store.HardLock {
		t.Fatalf("%d guesses began, want %d", begun, store.HardLock)
	}
}

func testConcurrentRepeat(t *testing.T, f *fixture) {
	a := f.p.Attempt(5)
	fresh := 0
	for _, tried := range together(64, func(int) store.Tried {
		tried, err := f.Try(t.Context(), a)
		if err != nil || tried.Code != 0 || tried.TriesLeft != 2 {
			t.Errorf("%+v, %v", tried, err)
		}
		return tried
	}) {
		if !tried.Repeat {
			fresh++
		}
	}
	if got := f.guard().Wrong; fresh != 1 || got != 1 {
		t.Fatalf("one attempt 64 times: %d fresh, counted %d", fresh, got)
	}
}
