// Package storetest is the contract of appliance/store as one suite, which every
// driver's tests run, with what such tests need to make clients, devices and
// countersignatures.
package storetest

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// Prepare fills an empty store.
type Prepare func(context.Context, store.Store) error

// Open returns a store of its own to each test, sealed.
type Open func(*testing.T) store.Store

// Run runs the whole suite. open returns how stores are opened that a prepare has
// filled, with mac@1 as [Unseal] has it: a driver may run prepare once and copy what it made. Each test closes its store.
func Run(t *testing.T, open func(Prepare) Open) {
	p := NewParties("alice")
	enrolled, empty := open(p.Enrol), open(func(context.Context, store.Store) error { return nil })
	for _, group := range []map[string]func(*testing.T, *fixture){
		partyTests, invitationTests, spendTests, limitTests, reportTests, registryTests, concurrencyTests,
		tryTests, approvalTests, statusTests, replaceTests, changeTests, recoveryTests,
	} {
		for name, test := range group {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, enrolled(t), p)
				test(t, f)
				f.checkAudit()
				f.must(f.Close())
			})
		}
	}
	t.Run("Close", func(t *testing.T) { testClose(t, newFixture(t, enrolled(t), p)) })
	t.Run("Empty", func(t *testing.T) { testEmpty(t, newFixture(t, empty(t), p)) })
}

// fixture is a store in which one client and one device are enrolled.
type fixture struct {
	store.Store
	p      Parties
	t      *testing.T
	anchor *Anchor
}

func newFixture(t *testing.T, s store.Store, p Parties) *fixture {
	t.Helper()
	f := &fixture{Store: s, p: p, t: t, anchor: &Anchor{}}
	_, err := unseal(t.Context(), s, f.anchor)
	f.must(err)
	return f
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) fails(err, want error) {
	f.t.Helper()
	if !errors.Is(err, want) {
		f.t.Fatalf("error %v, want %v", err, want)
	}
}

func (f *fixture) same(got, want any) {
	f.t.Helper()
	if !reflect.DeepEqual(got, want) {
		f.t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// records lists the whole audit.
func (f *fixture) records() []audit.Record {
	f.t.Helper()
	var all []audit.Record
	for {
		page, err := f.Records(f.t.Context(), uint64(len(all)), 1000)
		f.must(err)
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
	}
}

func (f *fixture) tally() store.Tally {
	f.t.Helper()
	n, err := f.Tally(f.t.Context())
	f.must(err)
	return n
}

// checkAudit holds what must be true of every store at any time.
func (f *fixture) checkAudit() {
	f.t.Helper()
	tally, all := f.tally(), f.records()
	var decisions uint64
	for i, rec := range all {
		if rec.Sequence != uint64(i+1) {
			f.t.Fatalf("record %d has sequence number %d", i+1, rec.Sequence)
		}
		if rec.Kind == audit.KindDecision || rec.Kind == audit.KindSettled {
			decisions++
		}
	}
	if decisions != tally.Decisions+tally.Questions || uint64(len(all)) != tally.Records {
		f.t.Fatalf("%d records, %d of decisions: tally is %+v", len(all), decisions, tally)
	}
}

// unchanged runs do and requires that it fails with want and leaves no trace.
func (f *fixture) unchanged(want error, do func() error) {
	f.t.Helper()
	before := f.tally()
	f.fails(do(), want)
	f.same(f.tally(), before)
}

func (f *fixture) try(a store.Attempt) store.Tried {
	f.t.Helper()
	tried, err := f.Try(f.t.Context(), a)
	f.must(err)
	return tried
}

// begins requires that an attempt begins that was not begun before.
func (f *fixture) begins(a store.Attempt) store.Tried {
	f.t.Helper()
	tried := f.try(a)
	if tried.Code != 0 || tried.Repeat {
		f.t.Fatalf("attempt %d of counter %d: %+v", a.AnswerKey.Attempt, a.Serial.Counter(), tried)
	}
	return tried
}

// refusesTry requires this code, and that nothing was counted.
func (f *fixture) refusesTry(a store.Attempt, want protocol.Code) store.Tried {
	f.t.Helper()
	before := f.guard()
	tried := f.try(a)
	if tried.Code != want || tried.Repeat {
		f.t.Fatalf("attempt %d of counter %d: %+v, want code %d", a.AnswerKey.Attempt, a.Serial.Counter(), tried, want)
	}
	f.same(f.guard(), before)
	return tried
}

func (f *fixture) wrong(a store.Attempt, left uint64) {
	f.t.Helper()
	rec := f.p.Spend(a.Serial.Counter()).Refused(protocol.CodePassword)
	f.must(f.Wrong(f.t.Context(), a.AnswerKey, left, rec))
}

func (f *fixture) guard() store.Guard {
	f.t.Helper()
	g, err := f.Guard(f.t.Context(), f.p.Client.ID)
	f.must(err)
	return g
}

// third is a countersignature under attempt 2, after two wrong ones.
func (f *fixture) third(counter uint32) store.Spend {
	f.t.Helper()
	a := f.p.Attempt(counter)
	for left := uint64(2); left > 0; left-- {
		f.begins(a)
		f.wrong(a, left)
		a = Next(a)
	}
	s := f.p.Spend(counter)
	s.AnswerKey = a.AnswerKey
	return s
}

// next returns an unused counter.
func (f *fixture) next() uint32 { return uint32(max(f.highest(), 100) + 1) }

func testClose(t *testing.T, f *fixture) {
	f.must(f.Close())
	f.must(f.Close())
	_, err := f.Spend(t.Context(), f.p.Spend(1))
	f.fails(err, store.ErrUnavailable)
	_, err = f.Client(t.Context(), f.p.Client.ID)
	f.fails(err, store.ErrUnavailable)
	f.fails(f.Append(t.Context(), Note("late")), store.ErrUnavailable)
}

func testEmpty(t *testing.T, f *fixture) {
	s := f.Store
	f.same(f.tally(), store.Tally{})
	_, err := s.ActivePolicy(t.Context())
	f.fails(err, store.ErrNotFound)
	clients, err := s.ListClients(t.Context())
	f.must(err)
	devices, err := s.ListDevices(t.Context())
	f.must(err)
	keys, err := s.ListKeys(t.Context())
	f.must(err)
	settings, err := s.Settings(t.Context())
	f.must(err)
	if n := len(clients) + len(devices) + len(keys) + len(settings) + len(f.records()); n != 0 {
		t.Fatalf("an empty store lists %d things", n)
	}
	f.must(s.Close())
}
