package report

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Stats summarizes calls of one kind. Times are in µs.
type Stats struct {
	Rate float64 `json:"per_second"`
	Mean float64 `json:"mean_us"`
	P50  float64 `json:"p50_us"`
	P90  float64 `json:"p90_us"`
	P99  float64 `json:"p99_us"`
	Max  float64 `json:"max_us"`
	CPU  float64 `json:"cpu_us"` // of all threads and worker processes, for each call
}

// Sample is the measurement of one thread: the number of calls, and how long some of them
// took.
type Sample struct {
	Calls int
	Each  []time.Duration
}

// NewStats summarizes what threads measured in parallel. It sorts the samples.
func NewStats(samples []Sample, took time.Duration) Stats {
	var all []time.Duration
	calls, sum := Calls(samples), time.Duration(0)
	for _, s := range samples {
		all = append(all, s.Each...)
	}
	if len(all) == 0 || took <= 0 {
		return Stats{}
	}
	for _, d := range all {
		sum += d
	}
	slices.Sort(all)
	rank := func(p float64) float64 { return us(all[min(int(p*float64(len(all))), len(all)-1)]) }
	return Stats{
		Rate: thousandth(float64(calls) / took.Seconds()), Mean: Each(sum, len(all)),
		P50: rank(0.5), P90: rank(0.9), P99: rank(0.99), Max: us(all[len(all)-1]),
	}
}

// Each returns the time of one of several calls, in µs.
func Each(sum time.Duration, calls int) float64 { return thousandth(us(sum) / float64(max(calls, 1))) }

// Calls returns the number of calls in the samples.
func Calls(samples []Sample) (n int) {
	for _, s := range samples {
		n += s.Calls
	}
	return n
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// thousandth drops insignificant digits.
func thousandth(f float64) float64 { return math.Round(f*1000) / 1000 }

// Point is the speed of an operation with a number of sessions.
type Point struct {
	Sessions int `json:"sessions"`
	Stats
}

// Curve is the speed of an operation by the number of sessions.
type Curve struct {
	Operation string  `json:"operation"`
	Points    []Point `json:"points"`
	Knee      int     `json:"knee"` // sessions, see [Knee]
}

// enough is the part of the best throughput for which more sessions are not worthwhile.
const enough = 0.9

// Knee returns the smallest number of sessions with at least 90 % of the best throughput,
// 0 without points.
func Knee(points []Point) int {
	best := slices.MaxFunc(append([]Point{{}}, points...), func(a, b Point) int { return cmp.Compare(a.Rate, b.Rate) })
	for _, p := range points {
		if p.Rate >= enough*best.Rate {
			return p.Sessions
		}
	}
	return 0
}

// At returns the point with a number of sessions.
func (c Curve) At(sessions int) Point {
	for _, p := range c.Points {
		if p.Sessions == sessions {
			return p
		}
	}
	return Point{}
}

// Raw is the speed of a token without processes and queues before it: calls in a C loop,
// one thread for each session.
type Raw struct {
	Curves []Curve `json:"curves"`
}

// The operations that are measured.
const (
	Sign   = "sign-p256"
	Derive = "derive-p256"
	MAC    = "mac"
)

// Operations lists them.
var Operations = []string{Sign, Derive, MAC}

// The ways an operation is measured.
const (
	PathRaw      = "raw"               // a C loop, a thread for each session
	PathService  = "service"           // the appliance's way, through worker processes
	PathVerified = "service, verified" // and the signature checked in software
)

// Bench compares the service with its token.
type Bench struct {
	Workers  int        `json:"workers"`
	Sessions int        `json:"sessions"` // of each worker
	Callers  int        `json:"callers"`
	Seconds  float64    `json:"seconds"` // of each measurement
	Measured []Measured `json:"measured"`
	Verify   Stats      `json:"verify"` // of P-256 signatures in software, one thread
}

// Measured is the speed of one operation on one path.
type Measured struct {
	Operation string `json:"operation"`
	Path      string `json:"path"`
	Parallel  int    `json:"parallel"` // threads of raw, callers of the service
	Stats
	OfRawOne float64 `json:"of_raw_one"` // of the raw rate with one thread
	OfRawAll float64 `json:"of_raw_all"` // of the raw rate with a thread for each session
}

// AddRaw adds the measurements of a C loop.
func (b *Bench) AddRaw(r Raw) {
	for _, c := range r.Curves {
		for _, p := range c.Points {
			b.Measured = append(b.Measured, Measured{Operation: c.Operation, Path: PathRaw, Parallel: p.Sessions, Stats: p.Stats})
		}
	}
}

// Compare sets the ratios. A rate that was not measured leaves 0.
func (b *Bench) Compare() {
	for i, m := range b.Measured {
		b.Measured[i].OfRawOne = ratio(m.Rate, b.rawRate(m.Operation, 1))
		b.Measured[i].OfRawAll = ratio(m.Rate, b.rawRate(m.Operation, b.Workers*b.Sessions))
	}
}

func (b *Bench) rawRate(operation string, threads int) float64 {
	for _, m := range b.Measured {
		if m.Operation == operation && m.Path == PathRaw && m.Parallel == threads {
			return m.Rate
		}
	}
	return 0
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return thousandth(a / b)
}
