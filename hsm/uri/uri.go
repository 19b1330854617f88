// Package uri is the PKCS#11 URI of RFC 7512: the one name of a token that
// other programs (p11-kit, OpenSSL, curl) take as well.
//
//	pkcs11:token=countersign;serial=0ea04f3bd8d8b5e5?module-path=/usr/lib/softhsm/libsofthsm2.so
//
// A URI that parses has one canonical form, which [URI.String] writes: attributes
// in the order of RFC 7512 §2.3, percent-encoded where and only where that section
// asks for it.
package uri

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrURI: the text is no PKCS#11 URI that may be used here.
var ErrURI = errors.New("malformed PKCS#11 URI")

const scheme = "pkcs11:"

// maxLen bounds a URI and its canonical form, in bytes: nobody has a longer one by
// intent.
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

// vendor marks the attributes of others, which are kept as they are.
const vendor = "x-"

// Attribute is a name and its value, decoded.
type Attribute struct{ Name, Value string }

// URI holds the attributes of a PKCS#11 URI in canonical order. The zero value is
// "pkcs11:", which fits every token.
type URI struct{ path, query []Attribute }

// Parse reads a URI. Unknown and doubled attributes, pin-value (a PIN never
// stands in a URI; pin-source says where it is) and what RFC 7512 §2.3 does not
// allow are [ErrURI]. The error never repeats a value.
func Parse(s string) (URI, error) {
	if len(s) < len(scheme) || !strings.EqualFold(s[:len(scheme)], scheme) {
		return URI{}, fmt.Errorf("it does not begin with %s: %w", scheme, ErrURI)
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

// New makes a URI of attributes by their names; those with an empty value are
// left out. A name that RFC 7512 does not have is [ErrURI].
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

// Get returns the value of an attribute, and whether the URI has it: an empty
// value is one too.
func (u URI) Get(name string) (string, bool) {
	for _, a := range slices.Concat(u.path, u.query) {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// Path returns the attributes that say which token, slot, library or object.
func (u URI) Path() []Attribute { return slices.Clone(u.path) }

// String writes the canonical form.
func (u URI) String() string {
	s := scheme + pathComponent.join(u.path)
	if len(u.query) > 0 {
		s += "?" + queryComponent.join(u.query)
	}
	return s
}
