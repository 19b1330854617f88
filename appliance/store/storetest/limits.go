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
}

var reportTests = map[string]func(*testing.T, *fixture){
	"Report":          testReport,
	"ReportGivesBack": testReportGivesBack,
	"ReportUnknown":   testReportUnknown,
}

// daily is a charge on today's window.
func daily(amount, amountLimit, countLimit uint64) store.Charge {
	return store.Charge{
		Service: 200, Period: 24 * time.Hour, Window: Epoch.Truncate(24 * time.Hour),
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
	tomorrow.Window = tomorrow.Window.Add(tomorrow.Period)
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
	weekly.Period, weekly.Window = 7*24*time.Hour, Epoch.Truncate(7*24*time.Hour)
	tomorrow := daily(300, 500, 0)
	tomorrow.Window = tomorrow.Window.Add(24 * time.Hour)
	third := tomorrow
	third.Window = third.Window.Add(24 * time.Hour)
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
