package keylife_test

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

const twoForSteps = "[quorum]\n\"key.rotate\" = 2\n\"key.activate\" = 2\n\"key.retire\" = 2\n\"key.resume\" = 2\n"

// draft returns the request that a step makes, and withdraws it.
func draft(b *appliancetest.Board, s keyplan.Step, ref string) change.Draft {
	b.Helper()
	_, err := b.TryStep(s, ref)
	var w *requests.Waiting
	if !errors.As(err, &w) {
		b.Fatalf("%s %s: %v", s.Verb, ref, err)
	}
	if _, err := b.Requests.Withdraw(b.Context(), w.Hash.ID()); err != nil {
		b.Fatal(err)
	}
	return change.Draft{Kind: w.Kind, Parameters: w.Parameters}
}

// made has ann countersign a step.
func made(b *appliancetest.Board, d change.Draft) {
	b.Helper()
	c := b.Waits(d)
	if c = b.Signed(c, b.Ann.Sign(b.T, c.Hash)); c.State != store.ChangeExecuted {
		b.Fatalf("%s: %s", c.State, c.Reason)
	}
}

// steps lists a rotation, with its undoing.
var steps = []struct {
	step keyplan.Step
	ref  string
}{
	{keyplan.Step{Verb: keyplan.Rotate}, "decision"},
	{keyplan.Step{Verb: keyplan.Activate}, "decision"},
	{keyplan.Step{Verb: keyplan.Activate}, "decision@1"},
	{keyplan.Step{Verb: keyplan.Activate}, "decision@2"},
	{keyplan.Step{Verb: keyplan.Retire, Early: true}, "decision"},
}

// TestInterruptedRequests: a step whose request was taken is taken after a restart, once. If it was
// taken before the interruption it is not repeated.
func TestInterruptedRequests(t *testing.T) {
	for name, before := range map[string]bool{"before the step": true, "after it": false} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.NewBoard(t, twoForSteps)
			for _, one := range steps {
				b.Clock.Advance(time.Minute)
				d := draft(b, one.step, one.ref)
				id := b.Taken(d).Hash.ID()
				if !before {
					made(b, d)
				}
				rows := len(b.Keyring.Ring().Keys())
				c := b.Resumed(id)
				if c.State != store.ChangeExecuted {
					t.Fatalf("%s %s: %s, %s", one.step.Verb, one.ref, c.State, c.Reason)
				}
				if !before && len(b.Keyring.Ring().Keys()) != rows {
					t.Errorf("%s %s was repeated", one.step.Verb, one.ref)
				}
			}
			old, _ := b.Keyring.Ring().Find(keyring.Decision, 1)
			if b.Version(keyring.Decision) != 2 || old.RetiredAt.IsZero() {
				t.Errorf("decision@%d is in use, decision@1: %+v", b.Version(keyring.Decision), old)
			}
		})
	}
}

// TestOvertakenStep: a step that was interrupted does not undo a later one.
func TestOvertakenStep(t *testing.T) {
	b := appliancetest.NewBoard(t, twoForSteps)
	made(b, draft(b, keyplan.Step{Verb: keyplan.Rotate}, "decision"))
	activate := draft(b, keyplan.Step{Verb: keyplan.Activate}, "decision")
	id := b.Taken(activate).Hash.ID()
	made(b, activate)
	b.Clock.Advance(time.Minute)
	b.Step(keyplan.Suspend, "decision@1")
	resume := draft(b, keyplan.Step{Verb: keyplan.Resume}, "decision@1")
	resumed := b.Taken(resume).Hash.ID()
	made(b, resume)
	made(b, draft(b, keyplan.Step{Verb: keyplan.Activate}, "decision@1")) // back
	b.Clock.Advance(time.Minute)
	b.Step(keyplan.Suspend, "decision@2")
	for _, id := range []change.ID{id, resumed} {
		if c := b.Resumed(id); c.State != store.ChangeFailed {
			t.Errorf("%s, %s", c.State, c.Reason)
		}
	}
	two, _ := b.Keyring.Ring().Find(keyring.Decision, 2)
	if b.Version(keyring.Decision) != 1 || two.SuspendedAt.IsZero() {
		t.Errorf("decision@%d is in use, decision@2 is suspended: %v", b.Version(keyring.Decision), !two.SuspendedAt.IsZero())
	}
}

// TestRulingOutTakesRetire: to make a version that rules out the earlier ones, and to put it into use, takes at
// least what it takes to retire those.
func TestRulingOutTakesRetire(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"key.retire\" = 2\n")
	for _, name := range []string{"decision", "root"} {
		rotate := draft(b, keyplan.Step{Verb: keyplan.Rotate, Compromised: true}, name)
		made(b, rotate)
		activate := draft(b, keyplan.Step{Verb: keyplan.Activate}, name)
		without := change.Draft{Kind: activate.Kind, Parameters: maps.Clone(activate.Parameters)}
		delete(without.Parameters, "rules_out")
		if _, err := b.Requests.Ask(t.Context(), without); !errors.Is(err, keyplan.ErrStep) {
			t.Errorf("%s: a request that does not say what it does: %v", name, err)
		}
		before := b.Version(keyring.Decision)
		made(b, activate)
		if b.Version(keyring.Decision) == before {
			t.Errorf("%s was not activated", name)
		}
		b.Clock.Advance(time.Minute)
	}
	b.Step(keyplan.Rotate, "decision") // what ends nothing takes one
	b.Step(keyplan.Activate, "decision")
}

// behind stores a key as another process would: the appliance has not read it yet.
func behind(b *appliancetest.Board, version uint64, edit func(*store.Key)) {
	b.Helper()
	rows, err := b.Store.ListKeys(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	row := rows[slices.IndexFunc(rows, func(k store.Key) bool { return k.Name == keyring.Decision && k.Version == version })]
	row.Revision++
	edit(&row)
	rec := audit.NewRecord(audit.KindKeys, "key/decision", nil)
	if err := b.Store.ChangeKeys(b.Context(), store.KeyChange{Update: []store.Key{row}}, rec); err != nil {
		b.Fatal(err)
	}
}

// TestNoStepWithoutItsVote: a step that changed nothing when it was asked for is not taken without a vote if
// the keys have changed until it is taken.
func TestNoStepWithoutItsVote(t *testing.T) {
	for verb, c := range map[keyplan.Verb]struct {
		ref  string
		edit func(b *appliancetest.Board)
	}{
		keyplan.Resume: {"decision@1", func(b *appliancetest.Board) {
			behind(b, 1, func(k *store.Key) { k.SuspendedAt = b.Clock.Now() })
		}},
		keyplan.Activate: {"decision@2", func(b *appliancetest.Board) {
			behind(b, 1, func(k *store.Key) { k.ActivatedAt = b.Clock.Now() })
		}},
	} {
		t.Run(string(verb), func(t *testing.T) {
			b := appliancetest.NewBoard(t, twoForSteps)
			made(b, draft(b, keyplan.Step{Verb: keyplan.Rotate}, "decision"))
			made(b, draft(b, keyplan.Step{Verb: keyplan.Activate}, "decision"))
			b.Clock.Advance(time.Minute)
			c.edit(b)
			rows, _ := b.Store.ListKeys(t.Context())
			if _, err := b.TryStep(keyplan.Step{Verb: verb}, c.ref); !errors.Is(err, keyplan.ErrStep) {
				t.Errorf("taken: %v", err)
			}
			if now, _ := b.Store.ListKeys(t.Context()); !reflect.DeepEqual(now, rows) {
				t.Error("the keys were changed")
			}
			draft(b, keyplan.Step{Verb: verb}, c.ref) // asked again, it waits
		})
	}
}

// TestStepOfALaterRow: a request is carried out only on the row that its signers saw.
func TestStepOfALaterRow(t *testing.T) {
	b := appliancetest.NewBoard(t, twoForSteps)
	made(b, draft(b, keyplan.Step{Verb: keyplan.Rotate}, "decision"))
	made(b, draft(b, keyplan.Step{Verb: keyplan.Activate}, "decision"))
	b.Clock.Advance(time.Minute)
	b.Step(keyplan.Suspend, "decision@1")
	c := b.Waits(draft(b, keyplan.Step{Verb: keyplan.Resume}, "decision@1"))
	behind(b, 1, func(k *store.Key) { k.SuspendedAt = time.Time{} })
	behind(b, 1, func(k *store.Key) { k.SuspendedAt = b.Clock.Now() })
	if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), b.Ann.Sign(t, c.Hash)); !errors.Is(err, keyplan.ErrStep) {
		t.Errorf("signed: %v", err)
	}
	if one, _ := b.Keyring.Ring().Find(keyring.Decision, 1); one.SuspendedAt.IsZero() {
		t.Error("a later suspension was undone")
	}
}

// TestBrakeDoesNotWait: an administrator is suspended at once, also while an approved step waits for the keys.
func TestBrakeDoesNotWait(t *testing.T) {
	b := appliancetest.NewBoard(t, twoForSteps)
	c := b.Waits(draft(b, keyplan.Step{Verb: keyplan.Rotate}, "decision"))
	id, vote := c.Hash.ID(), b.Ann.Sign(t, c.Hash)
	resume := b.Keys.Pause()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer resume()
	waiting.Go(func() { _, _ = b.Requests.Sign(t.Context(), id, vote) })
	within(t, "the request is taken", func() {
		for c.State != store.ChangeTaken && t.Context().Err() == nil {
			c, _ = b.Requests.Get(t.Context(), id)
		}
	})
	within(t, "bob is suspended", func() {
		if _, err := b.Requests.SuspendAdmin(t.Context(), "bob"); err != nil {
			t.Error(err)
		}
	})
}

// within fails the test if do does not return.
func within(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Errorf("not within 10s: %s", what)
	}
}

// TestScheduleActs: the records of the steps that the schedule takes name it.
func TestScheduleActs(t *testing.T) {
	b := appliancetest.New(t)
	b.Restart(func(c *appliance.Config) {
		c.Schedule = keyplan.Schedule{Auto: true, Periods: map[string]time.Duration{keyring.MAC: 20 * 24 * time.Hour}}
	})
	b.Clock.Advance(30 * 24 * time.Hour)
	before := b.Tally().Records
	b.RunUntil("a rotation", func() bool { return b.Version(keyring.MAC) == 2 })
	records, err := b.Store.Records(t.Context(), before, 100)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, rec := range records {
		actor, _ := rec.Words()["actor"].(map[string]any)
		switch event := rec.Words()["event"]; {
		case rec.Kind == audit.KindChanges:
			t.Errorf("the schedule asks: %v", rec.Words())
		case rec.Kind == audit.KindKeys && (event == "rotate" || event == "activate"):
			n++
			if actor["role"] != "schedule" {
				t.Errorf("%s by %v", event, actor)
			}
		}
	}
	if n < 2 {
		t.Errorf("%d steps", n)
	}
}
