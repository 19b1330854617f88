package uri

import "strings"

// Nearest returns the candidate that was probably meant, or "": the one with the
// fewest bytes to insert, delete or replace (Levenshtein), at most a quarter of
// the word, and at least two.
func Nearest(word string, candidates []string) string {
	best, bound := "", max(2, len(word)/4)
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d <= bound && c != "" {
			best, bound = c, d-1
		}
	}
	return best
}

func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
