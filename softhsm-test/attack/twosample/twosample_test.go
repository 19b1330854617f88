package twosample

import (
	"math"
	"math/rand/v2"
	"testing"
)

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.IsNaN(got) || math.Abs(got-want) > within {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// TestKnown compares with values worked out by hand from the definitions.
func TestKnown(t *testing.T) {
	a, b := []float64{1, 2, 3, 4, 5}, []float64{6, 7, 8, 9, 10}
	z, p := MannWhitney(a, b)
	near(t, "z", z, -12.5/math.Sqrt(25.0*11/12), 1e-12) // U = 0, mean 12.5
	near(t, "p", p, 0.00902, 1e-4)
	d, _ := KolmogorovSmirnov(a, b)
	near(t, "d", d, 1, 1e-12)
	z, _ = MannWhitney([]float64{1, 1, 2}, []float64{1, 2, 2}) // ties of 3 and 3
	near(t, "z with ties", z, (9-6-4.5)/math.Sqrt(0.75*(7-48.0/30)), 1e-12)
	if _, p := MannWhitney([]float64{1, 1}, []float64{1, 1}); p != 1 {
		t.Errorf("equal samples: p is %v", p)
	}
	near(t, "Kolmogorov at 1.358", kolmogorov(1.358), 0.05, 1e-3)
	near(t, "Kolmogorov at 1.628", kolmogorov(1.628), 0.01, 1e-3)
	near(t, "median", Median([]float64{4, 1, 3, 2}), 2.5, 0)
	near(t, "quartile", Quantile([]float64{1, 2, 3, 4, 5}, 0.25), 2, 0)
}

// TestLevel: samples of one distribution are told apart as often as the level says,
// and a shift of a fifth of the deviation nearly always.
func TestLevel(t *testing.T) {
	const rounds, n = 400, 2000
	source := rand.New(rand.NewPCG(1, 2))
	sample := func(shift float64) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = math.Exp(source.NormFloat64()/4) + shift
		}
		return x
	}
	for _, test := range []struct {
		name string
		p    func(a, b []float64) (statistic, p float64)
	}{{"Mann-Whitney", MannWhitney}, {"Kolmogorov-Smirnov", KolmogorovSmirnov}} {
		alarms, seen := 0, 0
		for range rounds {
			if _, p := test.p(sample(0), sample(0)); p < 0.01 {
				alarms++
			}
			if _, p := test.p(sample(0.05), sample(0)); p < 0.01 {
				seen++
			}
		}
		if alarms > 12 { // 4 expected, 12 in one run of a thousand
			t.Errorf("%s: %d false alarms of %d", test.name, alarms, rounds)
		}
		if seen < rounds*95/100 {
			t.Errorf("%s: sees a shift %d times of %d", test.name, seen, rounds)
		}
	}
}
