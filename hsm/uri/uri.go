// Package uri implements the PKCS#11 URI of RFC 7512, the name of a token that other
// programs (p11-kit, OpenSSL, curl) accept too.
//
//	pkcs11:token=countersign;serial=0ea04f3bd8d8b5e5?module-path=/usr/lib/softhsm/libsofthsm2.so
//
// A URI that parses has one canonical form, which [URI.String] writes: attributes
// in the order of RFC 7512 §2.3, percent-encoded exactly where that section requires
// it.
package uri

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrURI: the text is no PKCS#11 URI that may be used here.
var ErrURI = errors.New("malformed PKCS#11 URI")

const scheme = "pkcs11:"

// maxLen bounds a URI and its canonical form, in bytes.
const maxLen = 4096

// Names of attributes.
const (
	Token               = "token"                // CK_TOKEN_INFO.label
	Manufacturer        = "manufacturer"         // CK_TOKEN_INFO.manufacturerID
	Serial              = "serial"               // CK_TOKEN_INFO.serialNumber
	Model               = "model"                // CK_TOKEN_INFO.model
	LibraryManufacturer = "library-manufacturer" // CK_INFO.manufacturerID
	LibraryVersion      = "library-version"      // CK_INFO.libraryVersion
	LibraryDescription  = "library-description"  // CK_INFO.libraryDescription
	SlotDescription     = "slot-description"     // CK_SLOT_INFO.slotDescription
	SlotManufacturer    = "slot-manufacturer"    // CK_SLOT_INFO.manufacturerID
	SlotID              = "slot-id"              // CK_SLOT_ID, decimal
	ModulePath          = "module-path"          // of the PKCS#11 library

	pinValue = "pin-value"
)

// pathNames and queryNames are the attributes of RFC 7512 §2.3 in its order.
var (
	pathNames = []string{
		Token, Manufacturer, Serial, Model,
		LibraryManufacturer, LibraryVersion, LibraryDescription,
		"object", "type", "id",
		SlotDescription, SlotManufacturer, SlotID,
	}
	queryNames = []string{"pin-source", "module-name", ModulePath}
)

// vendor begins the names of vendor attributes, which are kept unchanged.
const vendor = "x-"

// Attribute is a name and its value, decoded.
type Attribute struct{ Name, Value string }

// URI holds the attributes of a PKCS#11 URI in canonical order. The zero value is
// "pkcs11:", which fits every token.
type URI struct{ path, query []Attribute }

// Parse reads a URI. It returns [ErrURI] for unknown and repeated attributes, for
// pin-value (a URI never contains a PIN; pin-source says where it is) and for what RFC
// 7512 §2.3 does not allow. The error never repeats a value.
func Parse(s string) (URI, error) {
	if len(s) < len(scheme) || !strings.EqualFold(s[:len(scheme)], scheme) {
		return URI{}, fmt.Errorf("it does not start with %s: %w", scheme, ErrURI)
	}
	path, query, asked := strings.Cut(s[len(scheme):], "?")
	var u URI
	var err error
	if u.path, err = pathComponent.parse(path); err != nil {
		return URI{}, err
	}
	if asked {
		u.query, err = queryComponent.parse(query)
	}
	if n := max(len(s), len(u.String())); err == nil && n > maxLen {
		err = fmt.Errorf("%d bytes, at most %d: %w", n, maxLen, ErrURI)
	}
	if err != nil {
		return URI{}, err
	}
	return u, nil
}

// New makes a URI of attributes. It omits those with an empty value, and returns [ErrURI]
// for a name that RFC 7512 does not define.
func New(attributes ...Attribute) (URI, error) {
	var u URI
	for _, a := range attributes {
		switch {
		case a.Value == "":
		case slices.Contains(pathNames, a.Name):
			u.path = append(u.path, a)
		case slices.Contains(queryNames, a.Name):
			u.query = append(u.query, a)
		default:
			return URI{}, fmt.Errorf("attribute %q: %w", a.Name, ErrURI)
		}
	}
	return Parse(u.String())
}

// Get returns the value of an attribute, and whether the URI has it: it may be empty.
func (u URI) Get(name string) (string, bool) {
	for _, a := range slices.Concat(u.path, u.query) {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// Path returns the attributes that select a token, slot, library or object.
func (u URI) Path() []Attribute { return slices.Clone(u.path) }

// String writes the canonical form.
func (u URI) String() string {
	s := scheme + pathComponent.join(u.path)
	if len(u.query) > 0 {
		s += "?" + queryComponent.join(u.query)
	}
	return s
}

// component is the grammar of the part before or after the question mark.
type component struct {
	what      string
	names     []string
	separator string
	reserved  string // characters of RFC 3986 that stand for themselves in a value
	repeat    bool   // vendor attributes may be repeated
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
			return nil, fmt.Errorf("%s is repeated: %w", name, ErrURI)
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

// known returns an error for a name that is not in the grammar, with the name that was
// probably meant.
func (c component) known(name string) error {
	switch {
	case name == pinValue:
		return fmt.Errorf("%s: a URI never contains a PIN, pin-source says where it is: %w", pinValue, ErrURI)
	case slices.Contains(c.names, name) || isVendor(name):
		return nil
	case slices.Contains(pathNames, name):
		return fmt.Errorf("%s belongs before the question mark: %w", name, ErrURI)
	case slices.Contains(queryNames, name):
		return fmt.Errorf("%s belongs after the question mark: %w", name, ErrURI)
	}
	text := fmt.Sprintf("unknown attribute %q", name)
	if near := Nearest(name, c.names); near != "" {
		text += fmt.Sprintf(" (did you mean %s?)", near)
	}
	return fmt.Errorf("%s: %w", text, ErrURI)
}

// isVendor reports whether a name is a v-pattr or v-qattr of pk11-v-attr-nm-char.
func isVendor(name string) bool {
	rest, ok := strings.CutPrefix(name, vendor)
	return ok && rest != "" && strings.Trim(rest, letters+digits+"-_") == ""
}

// order sorts as RFC 7512 lists attributes, and vendor attributes after them by name.
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

const (
	letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	digits  = "0123456789"
	// unreserved of RFC 3986 §2.3.
	unreserved = letters + digits + "-._~"
)

// plain reports whether a byte stands for itself in a value.
func (c component) plain(b byte) bool {
	return strings.IndexByte(unreserved, b) >= 0 || strings.IndexByte(c.reserved, b) >= 0
}

// encode writes a value. It encodes every byte of an id, as RFC 7512 §2.3 requires: it is
// binary.
func (c component) encode(a Attribute) string {
	var b strings.Builder
	for i := range len(a.Value) {
		if a.Name != "id" && c.plain(a.Value[i]) {
			b.WriteByte(a.Value[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", a.Value[i])
		}
	}
	return b.String()
}

// decode reads a value. The error gives the position, never the value.
func (c component) decode(raw string) (string, error) {
	value := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		switch {
		case raw[i] == '%':
			if i+3 > len(raw) {
				return "", fmt.Errorf("percent sign at byte %d without two digits: %w", i+1, ErrURI)
			}
			b, err := hex.DecodeString(raw[i+1 : i+3])
			if err != nil {
				return "", fmt.Errorf("percent sign at byte %d without two hexadecimal digits: %w", i+1, ErrURI)
			}
			value = append(value, b...)
			i += 2
		case c.plain(raw[i]):
			value = append(value, raw[i])
		default:
			return "", fmt.Errorf("byte %d (%q) must be written %%%02X: %w", i+1, raw[i:i+1], raw[i], ErrURI)
		}
	}
	return string(value), nil
}

var (
	libraryVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)
	slotID         = regexp.MustCompile(`^[0-9]+$`)
	types          = []string{"public", "private", "cert", "secret-key", "data"}
)

// checkValue checks what RFC 7512 §2.3 requires of a value beyond its characters.
func checkValue(name, value string) error {
	switch {
	case name == "id":
		return nil
	case !utf8.ValidString(value):
		return fmt.Errorf("not UTF-8: %w", ErrURI)
	case name == "type" && !slices.Contains(types, value):
		return fmt.Errorf("want one of %s: %w", strings.Join(types, ", "), ErrURI)
	case name == LibraryVersion && !libraryVersion.MatchString(value):
		return fmt.Errorf("want MAJOR or MAJOR.MINOR in digits: %w", ErrURI)
	case name == SlotID && !slotID.MatchString(value):
		return fmt.Errorf("want digits: %w", ErrURI)
	}
	return nil
}
