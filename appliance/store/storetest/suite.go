// Package storetest is the contract of appliance/store as one suite, which every
// driver's tests run, with what such tests need to make clients, devices and
// countersignatures.
package storetest

import (
	"errors"
	"reflect"
	"testing"

	"countersign/appliance/store"
)

// Run runs the whole suite. Each test gets an empty store of its own from open,
// and closes it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, group := range []map[string]func(*testing.T, *fixture){
		partyTests, invitationTests, spendTests, limitTests, reportTests, registryTests, concurrencyTests,
	} {
		for name, test := range group {
			t.Run(name, func(t *testing.T) {
				f := newFixture(t, open(t))
				test(t, f)
				f.checkAudit()
				f.must(f.Close())
			})
		}
	}
	t.Run("Close", func(t *testing.T) { testClose(t, open(t)) })
	t.Run("Empty", func(t *testing.T) { testEmpty(t, open(t)) })
}

// fixture is a store with one client and one device in it.
type fixture struct {
	store.Store
	p Parties
	t *testing.T
}

func newFixture(t *testing.T, s store.Store) *fixture {
	t.Helper()
	p, err := Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{Store: s, p: p, t: t}
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
func (f *fixture) records() []store.Record {
	f.t.Helper()
	var all []store.Record
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
		if rec.Kind == store.KindDecision {
			decisions++
		}
	}
	if decisions != tally.Decisions || uint64(len(all)) != tally.Records {
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

func testClose(t *testing.T, s store.Store) {
	f := newFixture(t, s)
	f.must(s.Close())
	f.must(s.Close())
	_, err := s.Spend(t.Context(), f.p.Spend(1))
	f.fails(err, store.ErrUnavailable)
	_, err = s.Client(t.Context(), f.p.Client.ID)
	f.fails(err, store.ErrUnavailable)
	f.fails(s.Append(t.Context(), Note("late")), store.ErrUnavailable)
}

func testEmpty(t *testing.T, s store.Store) {
	f := &fixture{Store: s, t: t}
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
