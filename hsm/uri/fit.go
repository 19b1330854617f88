package uri

import (
	"fmt"
	"slices"
)

// Facts are what a module shows of one slot and the token in it, by the names of
// path attributes.
type Facts map[string]string

// Unfit says what of a URI fits none of the slots, and what was probably meant;
// nothing when one slot has it all. Attributes of objects and of vendors are not
// looked at.
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
		notices = []string{"each attribute fits a token, but no token has all of them"}
	}
	return notices
}

// missing says that no token has the attribute, in the form it would be written.
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
