package pkcs11

import (
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// optional is how many of the attributes that restrict a key further a module keeps. The
// safety of a key does not depend on them: it depends on its usage, CKA_SENSITIVE and
// CKA_EXTRACTABLE.
type optional uint8

const (
	noOptional   optional = iota
	someOptional          // CKA_UNWRAP_TEMPLATE and CKA_COPYABLE
	allOptional           // CKA_ALLOWED_MECHANISMS as well
)

// trialLabel is the label of the objects by which a module shows what it keeps. They are
// destroyed at once.
const trialLabel = "countersign-trial"

// withRestriction puts CKA_ALLOWED_MECHANISMS first in a template if the module keeps it.
// SoftHSM accepts nothing more after CKA_MODIFIABLE.
func (t *Token) withRestriction(p profile, template []*pkcs11.Attribute) []*pkcs11.Attribute {
	if t.optional < allOptional {
		return template
	}
	return p.restrictedIf(true, template)
}

// withFewerOptional calls f, which puts a key on the token, again with fewer optional
// attributes while the module refuses them. The module refuses them with a code that names the
// template; after an ambiguous code a trial decides. Each key begins with every attribute that the
// trials have left, so one error costs no other key its attributes. Callers hold changing.
func (t *Token) withFewerOptional(s *session, f func() error) error {
	most := t.optional
	defer func() { t.optional = min(most, t.settled) }()
	first := f()
	for err := first; err != nil; err = f() {
		if t.optional > noOptional && (unsupported(err) || ambiguous(err) && t.refusesOptional(s)) {
			t.optional--
			continue
		}
		if unsupported(err) {
			return fmt.Errorf("%v: %w", first, errLacking) // it refuses the key itself
		}
		return first
	}
	if t.optional < most {
		t.log.Warn("module does not keep all attributes of a key", "token", t.label,
			"allowed_mechanisms", t.optional >= allOptional, "unwrap_template", t.optional >= someOptional)
	}
	return nil
}

// refusesOptional reports whether the module cannot have the attributes of the level in use,
// and remembers that. NSS answers CKR_GENERAL_ERROR to an attribute for which its database
// has no column, as other modules do to an outage.
func (t *Token) refusesOptional(s *session) bool {
	level := t.optional
	way := func(only optional) func() error { return func() error { return t.tryKey(s, only) } }
	if !refuses(way(level), way(noOptional)) {
		return false
	}
	t.settled = min(t.settled, level-1)
	return true
}

// refuses reports whether with fails and without succeeds, twice in turn. An outage does not look
// like that.
func refuses(with, without func() error) bool {
	for range 2 {
		if with() == nil || without() != nil {
			return false
		}
	}
	return true
}

// tryKey makes a secret key on the token, with the attributes of one level only, and destroys it.
func (t *Token) tryKey(s *session, only optional) (err error) {
	p := t.profile(hsm.MACKey)
	if t.have.check(t.using(hsm.WrapKey)) == nil {
		p = t.profile(hsm.WrapKey) // for CKA_UNWRAP_TEMPLATE
	}
	template := p.restrictedIf(only == allOptional, p.secret(random(len(hsm.KeyID{})), trialLabel))
	if only == someOptional {
		template = append(template, notCopyable())
	}
	var h pkcs11.ObjectHandle
	if only == someOptional && p.allows(pkcs11.CKA_UNWRAP) {
		h, err = t.native.generateWrapping(s.handle, p.keygen, template)
	} else {
		h, err = t.ctx.GenerateKey(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}, template)
	}
	if err != nil {
		return at("C_GenerateKey", err)
	}
	t.destroy(s, h, &err)
	return err
}

func notCopyable() *pkcs11.Attribute { return pkcs11.NewAttribute(pkcs11.CKA_COPYABLE, false) }
