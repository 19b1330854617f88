package uri

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// component is the grammar of the part before the question mark, or behind it.
type component struct {
	what      string
	names     []string
	separator string
	reserved  string // of RFC 3986, that stand for themselves in a value
	repeat    bool   // vendor attributes may be there several times
}

// available is pk11-res-avail of RFC 7512 §2.3.
const available = ":[]@!$'()*+,="

var (
	pathComponent  = component{"path", pathNames, ";", available + "&", false}
	queryComponent = component{"query", queryNames, "&", available + "/?|", true}
)

func (c component) parse(s string) ([]Attribute, error) {
	var list []Attribute
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, c.separator) {
		name, raw, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("attribute %d of the %s is not NAME=VALUE: %w", len(list)+1, c.what, ErrURI)
		}
		if err := c.known(name); err != nil {
			return nil, err
		}
		if !(c.repeat && isVendor(name)) && slices.ContainsFunc(list, func(a Attribute) bool { return a.Name == name }) {
			return nil, fmt.Errorf("%s is there twice: %w", name, ErrURI)
		}
		value, err := c.decode(raw)
		if err == nil {
			err = checkValue(name, value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, Attribute{name, value})
	}
	slices.SortStableFunc(list, c.order)
	return list, nil
}

// known refuses a name that is not in the grammar, and says which was meant.
func (c component) known(name string) error {
	switch {
	case name == pinValue:
		return fmt.Errorf("%s: a PIN never stands in a URI, pin-source says where it is: %w", pinValue, ErrURI)
	case slices.Contains(c.names, name) || isVendor(name):
		return nil
	case slices.Contains(pathNames, name):
		return fmt.Errorf("%s belongs before the question mark: %w", name, ErrURI)
	case slices.Contains(queryNames, name):
		return fmt.Errorf("%s belongs behind a question mark: %w", name, ErrURI)
	}
	text := fmt.Sprintf("unknown attribute %q", name)
	if near := Nearest(name, c.names); near != "" {
		text += fmt.Sprintf(" (did you mean %s?)", near)
	}
	return fmt.Errorf("%s: %w", text, ErrURI)
}

// isVendor holds v-pattr and v-qattr to pk11-v-attr-nm-char.
func isVendor(name string) bool {
	rest, ok := strings.CutPrefix(name, vendor)
	return ok && rest != "" && strings.Trim(rest, letters+digits+"-_") == ""
}

// order sorts as RFC 7512 lists, vendor attributes behind by name.
func (c component) order(a, b Attribute) int {
	if d := cmp.Compare(c.rank(a), c.rank(b)); d != 0 {
		return d
	}
	return strings.Compare(a.Name, b.Name)
}

func (c component) rank(a Attribute) int {
	if i := slices.Index(c.names, a.Name); i >= 0 {
		return i
	}
	return len(c.names)
}

func (c component) join(list []Attribute) string {
	parts := make([]string, len(list))
	for i, a := range list {
		parts[i] = a.Name + "=" + c.encode(a)
	}
	return strings.Join(parts, c.separator)
}
