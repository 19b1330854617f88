// Package twosample tests whether two samples may come from one distribution.
package twosample

import (
	"cmp"
	"math"
	"slices"
)

// Median of a sample that is not empty.
func Median(x []float64) float64 { return Quantile(x, 0.5) }

// Quantile q of a sample that is not empty, between neighbours.
func Quantile(x []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(x))
	at := q * float64(len(s)-1)
	low := int(at)
	high := min(low+1, len(s)-1)
	return s[low] + (at-float64(low))*(s[high]-s[low])
}

type ranked struct {
	value float64
	first bool // of the first sample
}

func pool(a, b []float64) []ranked {
	all := make([]ranked, 0, len(a)+len(b))
	for _, v := range a {
		all = append(all, ranked{v, true})
	}
	for _, v := range b {
		all = append(all, ranked{v, false})
	}
	slices.SortFunc(all, func(x, y ranked) int { return cmp.Compare(x.value, y.value) })
	return all
}

// MannWhitney is the two-sided rank-sum test (Mann and Whitney 1947) in the normal
// approximation, corrected for ties: z is positive where the first sample is the
// larger. It sees shifts. The samples want 20 values or more.
func MannWhitney(a, b []float64) (z, p float64) {
	all, n, m := pool(a, b), float64(len(a)), float64(len(b))
	var ranks, ties float64
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j].value == all[i].value {
			j++
		}
		t := float64(j - i)
		ties += t*t*t - t
		for _, r := range all[i:j] {
			if r.first {
				ranks += float64(i+j+1) / 2
			}
		}
		i = j
	}
	total := n + m
	variance := n * m / 12 * (total + 1 - ties/(total*(total-1)))
	if variance == 0 {
		return 0, 1
	}
	z = (ranks - n*(n+1)/2 - n*m/2) / math.Sqrt(variance)
	return z, math.Erfc(math.Abs(z) / math.Sqrt2)
}

// KolmogorovSmirnov is the two-sided test on the greatest distance d of the two
// distribution functions (Smirnov 1939), with the asymptotic p in Stephens' form. It
// sees any difference, a shift less well than MannWhitney.
func KolmogorovSmirnov(a, b []float64) (d, p float64) {
	all, n, m := pool(a, b), float64(len(a)), float64(len(b))
	var fa, fb float64
	for i := 0; i < len(all); {
		v := all[i].value
		for ; i < len(all) && all[i].value == v; i++ {
			if all[i].first {
				fa += 1 / n
			} else {
				fb += 1 / m
			}
		}
		d = max(d, math.Abs(fa-fb))
	}
	root := math.Sqrt(n * m / (n + m))
	return d, kolmogorov((root + 0.12 + 0.11/root) * d)
}

// kolmogorov is the probability that the statistic exceeds x.
func kolmogorov(x float64) float64 {
	if x < 0.2 {
		return 1
	}
	sum, sign := 0.0, 1.0
	for k := 1.0; k <= 100; k++ {
		sum += sign * math.Exp(-2*k*k*x*x)
		sign = -sign
	}
	return min(max(2*sum, 0), 1)
}
