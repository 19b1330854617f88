package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/protocol"
)

var limitTests = map[string]func(*testing.T, *fixture){
	"LimitAmount":   testLimitAmount,
	"LimitCount":    testLimitCount,
	"LimitWindow":   testLimitWindow,
	"LimitSeveral":  testLimitSeveral,
	"LimitDenied":   testLimitDenied,
	"LimitOverflow": testLimitOverflow,
	"LimitOneRow":   testLimitOneRow,
	"LimitSlides":   testLimitSlides,
	"Sum":           testSum,
	"SumRises":      testSumRises,
	"Used":          testUsed,
}

var reportTests = map[string]func(*testing.T, *fixture){
	"Report":          testReport,
	"ReportGivesBack": testReportGivesBack,
	"ReportUnknown":   testReportUnknown,
	"ReportBucket":    testReportBucket,
}

// daily is a charge on the window of a day that ends at Epoch.
func daily(amount, amountLimit, countLimit uint64) store.Charge {
	return store.Charge{
		Service: 200, Period: 24 * time.Hour, At: Epoch,
		Amount: amount, AmountLimit: amountLimit, CountLimit: countLimit,
	}
}

func (p Parties) charged(counter uint32, charges ...store.Charge) store.Spend {
	s := p.Spend(counter)
	s.Charges = charges
	return s
}

func testLimitAmount(_ *testing.T, f *fixture) {
	f.spend(f.p.charged(1, daily(1001, 1000, 0)), protocol.CodeLimit)
	f.approves(f.p.charged(2, daily(600, 1000, 0)))
	f.spend(f.p.charged(3, daily(401, 1000, 0)), protocol.CodeLimit)
	f.approves(f.p.charged(4, daily(400, 1000, 0))) // exactly the limit
	f.spend(f.p.charged(5, daily(1, 1000, 0)), protocol.CodeLimit)
	f.approves(f.p.charged(6, daily(0, 1000, 0)))
	f.approves(f.p.charged(7, daily(1, 1001, 0))) // the policy gives more
	f.spend(f.p.charged(8, daily(0, 500, 0)), protocol.CodeLimit)
}

func testLimitCount(_ *testing.T, f *fixture) {
	for n := range uint32(3) {
		f.approves(f.p.charged(n, daily(5, 0, 3)))
	}
	f.spend(f.p.charged(3, daily(5, 0, 3)), protocol.CodeLimit)
	f.approves(f.p.charged(4, daily(5, 0, 4)))
	f.approves(f.p.charged(5, daily(5, 0, 0))) // no limit, but it counts
	f.spend(f.p.charged(6, daily(1, 25, 0)), protocol.CodeLimit)
}

func testLimitWindow(t *testing.T, f *fixture) {
	f.approves(f.p.charged(1, daily(1000, 1000, 0)))
	tomorrow, service, week := daily(1000, 1000, 0), daily(1000, 1000, 0), daily(1000, 1000, 0)
	tomorrow.At = tomorrow.At.Add(tomorrow.Period + tomorrow.Period/60)
	service.Service = 201
	week.Period *= 7
	for i, other := range []store.Charge{tomorrow, service, week} {
		f.approves(f.p.charged(uint32(2+i), other))
	}
	f.spend(f.p.charged(10, daily(1, 1000, 0)), protocol.CodeLimit)
	q, err := Seed(t.Context(), f.Store, "bob")
	f.must(err)
	f.approves(q.charged(1, daily(1000, 1000, 0)))
}

func testLimitSeveral(_ *testing.T, f *fixture) {
	weekly := daily(300, 1000, 0)
	weekly.Period = 7 * 24 * time.Hour
	tomorrow := daily(300, 500, 0)
	tomorrow.At = tomorrow.At.Add(25 * time.Hour)
	third := tomorrow
	third.At = third.At.Add(25 * time.Hour)
	f.approves(f.p.charged(1, daily(300, 500, 0), weekly))
	f.spend(f.p.charged(2, daily(300, 500, 0), weekly), protocol.CodeLimit) // the day's
	f.approves(f.p.charged(3, tomorrow, weekly))
	f.approves(f.p.charged(4, third, weekly))
	third.Amount, weekly.Amount = 200, 200
	f.spend(f.p.charged(5, third, weekly), protocol.CodeLimit) // the week's
	third.Amount, weekly.Amount = 100, 100
	f.approves(f.p.charged(6, weekly, third)) // in any order
	f.spend(f.p.charged(7, weekly), protocol.CodeLimit)
}

// Only an approval takes from a limit.
func testLimitDenied(_ *testing.T, f *fixture) {
	s := f.p.charged(1, daily(1000, 1000, 1))
	s.Denial = protocol.CodeUserRefused
	f.spend(s, protocol.CodeUserRefused)
	f.setClient(store.Suspended)
	f.spend(f.p.charged(2, daily(1000, 1000, 1)), protocol.CodeSuspended)
	f.setClient(store.Active)
	f.spend(f.p.charged(2, daily(1000, 1000, 1)), protocol.CodeClone)
	once := f.p.charged(3, daily(1000, 1000, 1))
	f.approves(once)
	f.spend(once, 0) // a repeat
	f.spend(f.p.charged(4, daily(0, 1000, 1)), protocol.CodeLimit)
}

func testLimitOverflow(_ *testing.T, f *fixture) {
	const most = 1<<64 - 1
	f.approves(f.p.charged(1, daily(most, most, 0)))
	f.approves(f.p.charged(2, daily(most, 0, 9)))
	f.spend(f.p.charged(3, daily(1<<63, 1<<63, 0)), protocol.CodeLimit)
	f.spend(f.p.charged(4, daily(1, 1000, 0)), protocol.CodeLimit)
}

func testLimitOneRow(_ *testing.T, f *fixture) {
	f.approves(f.p.charged(1, daily(400, 1000, 0), daily(500, 0, 3)))
	f.approves(f.p.charged(2, daily(600, 1000, 0), daily(600, 0, 3))) // 400 were taken, once
	s := f.p.charged(3, daily(1, 1000, 0))
	f.spend(s, protocol.CodeLimit)
	f.approves(f.p.charged(4, daily(0, 0, 3)))
	f.spend(f.p.charged(5, daily(0, 0, 3)), protocol.CodeLimit)
}

// at moves a charge by a time after Epoch.
func at(c store.Charge, after time.Duration) store.Charge {
	c.At = Epoch.Add(after)
	return c
}

// Epoch is in the bucket of a day that began at noon and lasts 24 minutes. It counts until all of it
// is out of the window.
func testLimitSlides(_ *testing.T, f *fixture) {
	noon := Epoch.Truncate(time.Hour).Sub(Epoch)
	f.approves(f.p.charged(1, at(daily(600, 1000, 0), noon+23*time.Minute+59*time.Second)))
	f.approves(f.p.charged(2, at(daily(400, 1000, 0), noon+12*time.Hour))) // after midnight in UTC
	f.spend(f.p.charged(3, at(daily(1, 1000, 0), noon+24*time.Hour+23*time.Minute+59*time.Second)), protocol.CodeLimit)
	f.approves(f.p.charged(4, at(daily(600, 1000, 0), noon+24*time.Hour+24*time.Minute)))
	f.spend(f.p.charged(5, at(daily(1, 1000, 0), noon+24*time.Hour+24*time.Minute)), protocol.CodeLimit)
	f.spend(f.p.charged(6, at(daily(1, 1000, 0), noon-48*time.Hour)), protocol.CodeLimit) // a clock that was set back
}

// An amount that needs a higher level than the signed one is denied with 12.
func testSum(_ *testing.T, f *fixture) {
	sum := func(amount, below uint64) store.Charge {
		c := daily(amount, 0, 0)
		c.Below = below
		return c
	}
	f.spend(f.p.charged(1, sum(1500, 1500)), protocol.CodePolicy)
	f.approves(f.p.charged(2, sum(1000, 1500)))
	f.spend(f.p.charged(3, sum(500, 1500)), protocol.CodePolicy)
	f.approves(f.p.charged(4, sum(499, 1500)))
	f.spend(f.p.charged(5, sum(1, 1500)), protocol.CodePolicy)
	f.approves(f.p.charged(6, sum(1, 5000))) // signed at a higher level
	f.approves(f.p.charged(7, sum(1, 0)))
	f.spend(f.p.charged(8, sum(1, 1500), daily(1, 1500, 0)), protocol.CodeLimit) // first: no level helps
	const most = 1<<64 - 1
	f.approves(f.p.charged(9, sum(most, 0)))
	f.spend(f.p.charged(10, sum(most, most)), protocol.CodePolicy)
}

// What many approve at once counts for each of them.
func testSumRises(t *testing.T, f *fixture) {
	const callers, below = 8, 5 * 100
	results := make(chan protocol.Result, callers)
	for n := range callers {
		c := daily(100, 0, 0)
		c.Below = below
		go func() {
			out, err := f.Spend(t.Context(), f.p.charged(uint32(n), c))
			if err != nil || out.Result == protocol.ResultDenied && out.Reason != protocol.CodePolicy && out.Reason != protocol.CodeSerial {
				t.Error(out, err)
			}
			results <- out.Result
		}()
	}
	approved := 0
	for range callers {
		if <-results == protocol.ResultApproved {
			approved++
		}
	}
	if approved > 4 {
		t.Errorf("%d approvals of 100 below %d", approved, below)
	}
}

func testUsed(t *testing.T, f *fixture) {
	used := func(id protocol.ClientID, charges ...store.Charge) []store.Used {
		t.Helper()
		u, err := f.Used(t.Context(), id, charges)
		f.must(err)
		return u
	}
	hour := daily(0, 0, 0)
	hour.Period = time.Hour
	f.same(used(f.p.Client.ID, daily(0, 0, 0)), []store.Used{{}})
	f.approves(f.p.charged(1, daily(70, 0, 0)))
	f.approves(f.p.charged(2, at(daily(7, 0, 0), time.Hour), at(hour, time.Hour)))
	later := at(daily(0, 0, 0), time.Hour)
	f.same(used(f.p.Client.ID, hour, later, at(hour, time.Hour)), []store.Used{{Count: 1}, {Amount: 77, Count: 2}, {Count: 1}})
	f.same(used(f.p.Client.ID), []store.Used{})
	for _, unknown := range []protocol.ClientID{{}, {0: 1}, {0: 255, 1: 255}} {
		f.same(used(unknown, later), []store.Used{{}})
	}
	near := f.p.Client.ID
	for _, step := range []byte{1, 254} {
		near[7] += step
		f.same(used(near, later), []store.Used{{}})
	}
	q, err := Seed(t.Context(), f.Store, "bob")
	f.must(err)
	f.same(used(q.Client.ID, later), []store.Used{{}})
	f.same(used(f.p.Client.ID, later), []store.Used{{Amount: 77, Count: 2}})
}

func (f *fixture) report(s store.Spend, performed bool) {
	f.t.Helper()
	f.must(f.Report(f.t.Context(), reportOf(s, performed), Note("report")))
}

func reportOf(s store.Spend, performed bool) store.Report {
	return store.Report{Device: s.Decision.Device, Transaction: s.Decision.Transaction, Performed: performed, At: Epoch}
}

func testReport(_ *testing.T, f *fixture) {
	s := f.p.charged(1, daily(1000, 1000, 1))
	f.approves(s)
	before := f.tally()
	f.report(s, true)
	before.Records++
	f.same(f.tally(), before)
	f.report(s, false) // the first one stands
	f.report(s, true)
	f.same(f.tally(), before)
	f.spend(f.p.charged(2, daily(1, 1000, 2)), protocol.CodeLimit)
	f.report(f.approvedPlain(3), false) // nothing to give back
}

func (f *fixture) approvedPlain(counter uint32) store.Spend {
	f.t.Helper()
	s := f.p.Spend(counter)
	f.approves(s)
	return s
}

func testReportGivesBack(_ *testing.T, f *fixture) {
	weekly := daily(700, 5000, 9)
	weekly.Period *= 7
	s := f.p.charged(1, daily(700, 1000, 2), weekly)
	f.approves(s)
	f.approves(f.p.charged(2, daily(300, 1000, 2), weekly))
	f.spend(f.p.charged(3, daily(0, 1000, 2)), protocol.CodeLimit)
	f.report(s, false)
	f.report(s, false) // once only
	f.spend(f.p.charged(4, daily(701, 1000, 2)), protocol.CodeLimit)
	f.approves(f.p.charged(5, daily(700, 1000, 2)))
	f.spend(f.p.charged(6, daily(0, 1000, 2)), protocol.CodeLimit)
	weekly.Amount = 4300
	f.approves(f.p.charged(7, weekly))
	weekly.Amount = 1
	f.spend(f.p.charged(8, weekly), protocol.CodeLimit)
}

func testReportUnknown(t *testing.T, f *fixture) {
	q, err := Seed(t.Context(), f.Store, "bob")
	f.must(err)
	s, denied := f.p.Spend(1), f.p.Spend(2)
	f.approves(s)
	denied.Denial = protocol.CodeUserRefused
	f.spend(denied, protocol.CodeUserRefused)
	foreign, unknown := reportOf(s, true), reportOf(s, true)
	foreign.Device = q.Device.ID
	unknown.Transaction[0]++
	for _, r := range []store.Report{foreign, unknown, reportOf(denied, true)} {
		f.unchanged(store.ErrNotFound, func() error { return f.Report(t.Context(), r, Note("")) })
	}
}

// What was not performed is given back to the bucket of its charge, whichever came later.
func testReportBucket(_ *testing.T, f *fixture) {
	first := f.p.charged(1, daily(700, 1000, 0))
	f.approves(first)
	f.approves(f.p.charged(2, at(daily(300, 1000, 0), 12*time.Hour)))
	f.report(first, false)
	f.spend(f.p.charged(3, at(daily(701, 1000, 0), 13*time.Hour)), protocol.CodeLimit)
	f.approves(f.p.charged(4, at(daily(700, 1000, 0), 13*time.Hour)))
	// The first bucket is out of the window now, and took nothing with it.
	f.spend(f.p.charged(5, at(daily(1, 1000, 0), 26*time.Hour)), protocol.CodeLimit)
	late := f.p.charged(6, at(daily(300, 0, 0), 26*time.Hour))
	f.approves(late)
	f.approves(f.p.charged(7, at(daily(1, 0, 0), 100*24*time.Hour))) // all before is forgotten
	f.report(late, false)
	f.spend(f.p.charged(8, at(daily(1000, 1000, 0), 100*24*time.Hour)), protocol.CodeLimit)
	f.approves(f.p.charged(9, at(daily(999, 1000, 0), 100*24*time.Hour)))
}
