package uri

import (
	"fmt"
	"slices"
	"strings"
)

// Facts describes one slot and the token in it, by the names of path attributes.
type Facts map[string]string

// Unfit returns the attributes of a URI that no slot has, with the values that were
// probably meant. It returns nothing if one slot has all of them. It ignores attributes of
// objects and of vendors.
func (u URI) Unfit(slots []Facts) []string {
	if slices.ContainsFunc(slots, u.fits) {
		return nil
	}
	if len(slots) == 0 {
		return []string{"the module shows no token"}
	}
	var notices []string
	for _, a := range u.path {
		there := values(slots, a.Name)
		if len(there) == 0 || slices.Contains(there, a.Value) {
			continue
		}
		notices = append(notices, missing(a, there))
	}
	if len(notices) == 0 {
		notices = []string{"each attribute fits a token, but no token has them all"}
	}
	return notices
}

// missing says that no token has the attribute, written as in a URI.
func missing(a Attribute, there []string) string {
	text := fmt.Sprintf("no token has %s=%s", a.Name, pathComponent.encode(a))
	if near := Nearest(a.Value, there); near != "" {
		return fmt.Sprintf("%s (did you mean %s=%s?)", text, a.Name, pathComponent.encode(Attribute{a.Name, near}))
	}
	return text
}

func (u URI) fits(slot Facts) bool {
	for _, a := range u.path {
		if there, known := slot[a.Name]; known && there != a.Value {
			return false
		}
	}
	return true
}

func values(slots []Facts, name string) (list []string) {
	for _, s := range slots {
		if v, ok := s[name]; ok {
			list = append(list, v)
		}
	}
	return list
}

// Nearest returns the candidate that was probably meant, or "": the one with the fewest
// bytes to insert, delete or replace (Levenshtein), at most a quarter of the word and at
// least two.
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
