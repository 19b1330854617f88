package pkcs11

import (
	"fmt"

	"github.com/miekg/pkcs11"
)

// extras is how many of the attributes that make a key narrower still a module
// keeps. None is what its safety rests on: that is the usage, sensitive and not
// extractable.
type extras uint8

const (
	bare extras = iota // none
	most               // CKA_UNWRAP_TEMPLATE and CKA_COPYABLE
	full               // CKA_ALLOWED_MECHANISMS as well
)

// restricted puts CKA_ALLOWED_MECHANISMS first in a template, where the module
// keeps it. SoftHSM takes nothing more after CKA_MODIFIABLE.
func (t *Token) restricted(p profile, template []*pkcs11.Attribute) []*pkcs11.Attribute {
	if t.extras < full {
		return template
	}
	return append([]*pkcs11.Attribute{p.restriction()}, template...)
}

// fitting calls f, which puts a key on the token, with fewer extras as long as
// the module refuses it; what it took is remembered. NSS refuses with
// CKR_GENERAL_ERROR what its database has no column for. keepMu is held.
func (t *Token) fitting(f func() error) error {
	before := t.extras
	first := f()
	for err := first; err != nil; err = f() {
		if t.extras > bare && (unsupported(err) || blames(err)) {
			t.extras--
			continue
		}
		if t.extras = before; unsupported(err) {
			return fmt.Errorf("%v: %w", first, errLacking) // not even the least
		}
		return first
	}
	if t.extras < before {
		t.log.Warn("module keeps not all attributes", "token", t.label, "allowed_mechanisms", t.extras >= full, "unwrap_template", t.extras >= most)
	}
	return nil
}
