package trust

import (
	"maps"
	"slices"
)

// A client cannot trust its clock, which may be ahead and then be set right. The client then gives up what it adopted
// only because of that clock, and keeps what the appliance has shown (PROTOCOL.md §2.2).

// Shown is what an authentic M2 or a decision shows: the appliance used this epoch, and its clock stood at this time.
type Shown struct {
	Use   Use
	Epoch uint64
	Now   uint64 // Unix seconds: P2.now, or field 6 of the decision
}

// Show returns the state after the appliance has shown this to the client.
func (t State) Show(s Shown) State {
	t.ShownTime = max(t.ShownTime, s.Now)
	if s.Epoch > t.ShownEpochs[s.Use] {
		t.ShownEpochs = maps.Clone(t.ShownEpochs)
		if t.ShownEpochs == nil {
			t.ShownEpochs = map[Use]uint64{}
		}
		t.ShownEpochs[s.Use] = s.Epoch
	}
	// No time ends a key of decision or a minimum epoch, because receipts have no end. A later minimum
	// epoch replaces them, see adopt.
	over := func(k Key) bool { return !k.TakesM2At(t.ShownTime) && k.MinEpoch == nil && k.Use != UseDecision }
	t.Earlier = slices.DeleteFunc(slices.Clone(t.Earlier), over)
	t.Later = slices.DeleteFunc(slices.Clone(t.Later), over)
	return t
}

// At returns the state of a client whose clock shows this time, and the time by which it judges dates, both times in Unix
// seconds. It gives up each epoch that begins more than a day after this clock and after every time that the appliance
// has shown, if another one of its use does not, and adopts the later epochs whose time has come.
func (t State) At(clock uint64) (State, uint64) {
	come := max(clock, t.ShownTime)
	for use := range t.Keys {
		if t.anyHasCome(use, come) {
			t = t.giveUp(use, come)
		}
	}
	t = t.Adopt(t.timeAt(clock, come))
	return t, t.timeAt(clock, come)
}

// timeAt returns the clock, or the newest not-before of an adopted epoch that has come if that is later.
func (t State) timeAt(clock, come uint64) uint64 {
	for _, k := range t.Keys {
		if k.hasCome(come) {
			clock = max(clock, k.NotBefore)
		}
	}
	return clock
}

// hasCome reports whether the epoch may be in use. One that rules out others is given out only when the appliance uses
// it, PROTOCOL.md §7, 34.
func (k KeyCert) hasCome(now uint64) bool { return k.begins() <= now || k.MinEpoch != nil }

// anyHasCome reports whether an epoch of this use has come. If none has, the clock is behind all of them, and it does not
// show that it was ahead when the client adopted the newest.
func (t State) anyHasCome(use Use, come uint64) bool {
	return slices.ContainsFunc(t.held(), func(k Key) bool { return k.Use == use && k.hasCome(come) })
}

// giveUp goes back to the newest epoch of a use that has come, or that the appliance has shown.
func (t State) giveUp(use Use, come uint64) State {
	for {
		k, held := t.Keys[use]
		if !held || k.hasCome(come) || k.Epoch <= t.ShownEpochs[use] {
			return t
		}
		t.Keys, t.Later = maps.Clone(t.Keys), append(slices.Clone(t.Later), k)
		slices.SortStableFunc(t.Later, byEpoch)
		delete(t.Keys, use)
		if i := newest(t.Earlier, use); i >= 0 {
			t.Keys[use] = t.Earlier[i]
			t.Earlier = slices.Delete(slices.Clone(t.Earlier), i, i+1)
		}
	}
}

// newest returns the index of the highest epoch of a use, or -1.
func newest(keys []Key, use Use) int {
	at := -1
	for i, k := range keys {
		if k.Use == use && (at < 0 || k.Epoch > keys[at].Epoch) {
			at = i
		}
	}
	return at
}

// KEM returns the key for the next M1: the adopted one, or the lowest later one if none has come. The appliance opens M1
// under each epoch that it has given out.
func (t State) KEM() (key Key, ok bool) {
	if k, ok := t.Keys[UseKEM]; ok {
		return k, true
	}
	i := slices.IndexFunc(t.Later, func(k Key) bool { return k.Use == UseKEM })
	if i < 0 {
		return Key{}, false
	}
	return t.Later[i], true
}
