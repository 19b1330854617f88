package appliance

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/internal/fault"
)

// Finding is the result of one examination.
type Finding struct {
	Check  string // "hsm", "keys", "store", "seals", "clock", "dates", "quorum", "changes"
	Err    error  // nil: no problem
	Warn   bool   // the error is no outage
	Detail string // measurements
	Advice string // one sentence: how to fix the error
}

// Examinations warn beyond these bounds.
const (
	slowSign  = 500 * time.Millisecond
	slowStore = 100 * time.Millisecond
	aheadMost = 2 * time.Second
)

// Examine uses token and store as requests do, and checks dates, quorums and interrupted changes.
// It changes nothing: its write to the store leaves no record.
func (a *Appliance) Examine(ctx context.Context) []Finding {
	clock := a.examineClock(ctx)
	return []Finding{
		a.examineHSM(ctx), a.examineKeys(ctx), a.examineStore(ctx), a.examineSeals(ctx), clock,
		a.examineDates(ctx, clock), a.examineQuorums(ctx), a.examineChanges(ctx),
	}
}

// slow adds the duration of an examination, and warns if it is too long.
func (f Finding) slow(took, most time.Duration) Finding {
	f.Detail = fmt.Sprintf("%s %.1f ms", f.Detail, float64(took.Microseconds())/1000)
	if f.Err == nil && took > most {
		f.Err, f.Warn = fmt.Errorf("took %v, more than %v", took.Round(time.Millisecond), most), true
	}
	return f
}

// examineHSM has the token sign once; the signature is verified in software.
func (a *Appliance) examineHSM(ctx context.Context) Finding {
	f := Finding{Check: "hsm", Detail: "one signature, verified in software:", Advice: fault.ExamineHSM.Advice}
	key, err := a.keyring.Current(keyring.Decision, a.now())
	if err != nil {
		f.Err = err
		return f
	}
	var digest [sha256.Size]byte
	_, _ = rand.Read(digest[:]) // never fails, crypto/rand
	start := time.Now()
	_, f.Err = a.keyring.Signer(key).SignDigest(ctx, digest[:])
	return f.slow(time.Since(start), slowSign)
}

func (a *Appliance) examineKeys(ctx context.Context) Finding {
	f := Finding{Check: "keys", Advice: fault.ExamineKeys.Advice}
	start := time.Now()
	f.Err = keylife.SelfTest(ctx, a.keyring, a.now())
	f.Detail = fmt.Sprintf("%d versions in the registry, those in use tested against software: %.1f ms", len(a.keyring.Ring().Keys()), float64(time.Since(start).Microseconds())/1000)
	return f
}

func (a *Appliance) examineStore(ctx context.Context) Finding {
	f := Finding{
		Check: "store", Detail: "one durable write:",
		Advice: fault.ExamineStore.Advice,
	}
	start := time.Now()
	f.Err = a.store.Pulse(ctx, a.now())
	if errors.Is(f.Err, store.ErrReadOnly) {
		f.Detail, f.Err = "open for reading only; its permissions allow changes:", nil
	}
	return f.slow(time.Since(start), slowStore)
}

// examineSeals verifies the seal of every record in force, and the schema.
func (a *Appliance) examineSeals(ctx context.Context) Finding {
	f := Finding{Check: "seals", Advice: fault.ExamineSeals.Advice}
	records, forged, err := a.store.Verify(ctx)
	f.Detail = fmt.Sprintf("%d records in force verified under mac@%d", records, a.seals.InForce())
	switch {
	case err != nil:
		f.Err = err
	case len(forged) > forgedShown:
		f.Err = errors.Join(append(forged[:forgedShown:forgedShown], fmt.Errorf("and %d more", len(forged)-forgedShown))...)
	default:
		f.Err = errors.Join(forged...)
	}
	return f
}

// forgedShown is the number of forged records that an examination names.
const forgedShown = 10

// examineClock compares the clock with the newest audit record, and with the time since the daemon's start.
func (a *Appliance) examineClock(ctx context.Context) Finding {
	f := Finding{Check: "clock", Advice: fault.ExamineClock.Advice}
	now := a.now()
	f.Detail = now.UTC().Format(time.RFC3339)
	last, err := a.LastRecords(ctx, 1)
	if err != nil || len(last) == 0 {
		f.Err = err
		return f
	}
	if ahead := last[0].At.Sub(now); ahead > aheadMost {
		f.Err = fmt.Errorf("%v behind the newest audit record: it is slow, or it was ahead then", ahead.Round(time.Second))
	}
	if a.steady != nil && a.steady.Behind() > aheadMost {
		f.Err = fmt.Errorf("set back by %v since the daemon started", a.steady.Behind().Round(time.Second))
		f.Advice = fault.ExamineClockBack.Advice
	}
	return f
}

// examineDates looks at the schedule of the keys. With a wrong clock every date is wrong: then it advises only to look
// at the clock.
func (a *Appliance) examineDates(ctx context.Context, clock Finding) Finding {
	f := Finding{Check: "dates", Detail: "no key is due for rotation", Advice: fault.ExamineDates.Advice}
	f.Err = a.Keys.CheckDue(ctx)
	f.Warn = true
	for _, d := range a.Keys.Due() {
		if d.Version == 0 && errors.Is(f.Err, keylife.ErrDue) {
			f.Warn = false // none is in use
		}
	}
	if f.Err != nil && clock.Err != nil {
		f.Advice = fault.ExamineDatesByClock.Advice
	}
	return f
}

func (a *Appliance) examineQuorums(ctx context.Context) Finding {
	f := Finding{Check: "quorum", Warn: true, Advice: fault.ExamineQuorum.Advice}
	rules := a.Rules.Active().Policy
	all, err := a.Quorum.Quorums(ctx, rules)
	if err != nil {
		f.Err, f.Warn = err, false
		return f
	}
	var short []string
	for _, q := range all {
		if q.Able < q.Required {
			short = append(short, fmt.Sprintf("%s takes %d", q.Kind, q.Required))
		}
	}
	f.Detail = fmt.Sprintf("able to countersign: %d", all[0].Able)
	var wrong []string
	if short != nil {
		wrong = append(wrong, strings.Join(short, ", ")+" administrators")
	}
	for _, e := range rules.Evasions() {
		wrong = append(wrong, e.String())
	}
	wrong = append(wrong, rules.Ignored()...)
	if wrong != nil {
		f.Err = errors.New(strings.Join(wrong, "; "))
	}
	return f
}

func (a *Appliance) examineChanges(ctx context.Context) Finding {
	f := Finding{Check: "changes", Warn: true, Advice: fault.ExamineChanges.Advice}
	open, interrupted, err := a.Requests.Count(ctx)
	if err != nil {
		f.Err, f.Warn = err, false
		return f
	}
	f.Detail = fmt.Sprintf("%d requests are open", open)
	if interrupted > 0 {
		f.Err = fmt.Errorf("%d changes were interrupted", interrupted)
	}
	return f
}
