package pkcs11

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// optional is a set of the attributes that restrict a key further, and that a module may refuse. The
// safety of a key does not depend on them: it depends on its usage, CKA_SENSITIVE and
// CKA_EXTRACTABLE.
type optional uint8

const (
	restricted optional = 1 << iota // CKA_ALLOWED_MECHANISMS
	keptIn                          // CKA_COPYABLE false, and the CKA_UNWRAP_TEMPLATE of a wrap key
	openHalf                        // CKA_PRIVATE false on a public half, so that it is seen without a login
	fixed                           // CKA_MODIFIABLE false

	noOptional  optional = 0
	allOptional          = restricted | keptIn | openHalf | fixed
)

// optionals are in the order in which a key does without them.
var optionals = []struct {
	only optional
	name string
}{
	{restricted, "CKA_ALLOWED_MECHANISMS"},
	{keptIn, "CKA_COPYABLE and CKA_UNWRAP_TEMPLATE"},
	{openHalf, "CKA_PRIVATE false on public keys"},
	{fixed, "CKA_MODIFIABLE false"},
}

func (o optional) has(one optional) bool { return o&one != 0 }

// names returns the attributes of the set.
func (o optional) names() string {
	var names []string
	for _, one := range optionals {
		if o.has(one.only) {
			names = append(names, one.name)
		}
	}
	return strings.Join(names, ", ")
}

// trialLabel is the label of the objects by which a module shows what it keeps. They are
// destroyed at once.
const trialLabel = "countersign-trial"

// withRestriction puts CKA_ALLOWED_MECHANISMS first in a template if the module keeps it.
// SoftHSM accepts nothing more after CKA_MODIFIABLE.
func (t *Token) withRestriction(p profile, template []*pkcs11.Attribute) []*pkcs11.Attribute {
	return p.restrictedIf(t.optional.has(restricted), template)
}

// kept leaves out of the template of a key what the module refuses to see. Callers hold changing.
func (t *Token) kept(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	list := make([]*pkcs11.Attribute, 0, len(template))
	for _, a := range t.seen(template) {
		no := !truth(a.Value)
		if no && a.Type == pkcs11.CKA_MODIFIABLE && !t.optional.has(fixed) || no && a.Type == pkcs11.CKA_PRIVATE && !t.optional.has(openHalf) {
			continue
		}
		list = append(list, a)
	}
	return list
}

// withFewerOptional calls f, which puts a key on the token, again with fewer optional attributes
// while the module refuses them. First trials show which ones the module refuses: no later key has
// these. The module also refuses them with a code that names the template; without a trial that
// confirms it, this key does without them one by one, and the next one begins with them again. So one
// error costs no other key its attributes. Callers hold changing.
func (t *Token) withFewerOptional(s *session, f func() error) error {
	defer func() { t.optional = t.settled }()
	first := f()
	if first == nil || !unsupported(first) && !ambiguous(first) {
		return first
	}
	err := first
	if refused := t.refusedOptional(s); refused != noOptional {
		t.settled &^= refused
		t.optional = t.settled
		t.log.Warn("module does not keep all attributes of a key", "token", t.label, "without", refused.names())
		err = f()
	}
	for _, one := range optionals {
		if err == nil || !unsupported(err) {
			break
		}
		if t.optional.has(one.only) {
			t.optional &^= one.only
			err = f()
		}
	}
	switch {
	case unsupported(err):
		return fmt.Errorf("%v: %w", first, errLacking) // it refuses the key itself
	case err != nil:
		return first
	case t.optional != t.settled:
		t.log.Warn("module refused attributes of this key", "token", t.label, "without", (t.settled &^ t.optional).names())
	}
	return nil
}

// refusedOptional returns the attributes that the module cannot have. NSS answers CKR_GENERAL_ERROR to
// an attribute for which its database has no column, as other modules do to an outage.
func (t *Token) refusedOptional(s *session) (refused optional) {
	before := t.optional
	defer func() { t.optional = before }()
	for _, one := range optionals {
		if !before.has(one.only) {
			continue
		}
		way := func(only optional) func() error {
			return func() error { return t.tryKey(s, only, one.only == openHalf) }
		}
		if refuses(way(one.only), way(noOptional)) {
			refused |= one.only
		}
	}
	return refused
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

// tryKey makes a key on the token, with some of the attributes only, and destroys it. It is a key pair
// or a secret key.
func (t *Token) tryKey(s *session, only optional, ofPair bool) (err error) {
	t.optional = only
	mark := random(len(hsm.KeyID{}))
	if ofPair {
		p, name := profiles[hsm.SignP256], tokenAttributes(mark, trialLabel)
		made, err := t.generateDraft(s, p, pair{append(p.verifying(), name...), t.withRestriction(p, append(p.protection(false), name...))})
		if err == nil {
			made.end(&err)
		}
		return err
	}
	usage := hsm.MACKey
	if t.have.check(t.using(hsm.WrapKey)) == nil {
		usage = hsm.WrapKey // for CKA_UNWRAP_TEMPLATE
	}
	h, err := t.newSecret(s, usage, t.onToken(usage, mark, trialLabel))
	if err == nil {
		t.destroy(s, h, &err)
	}
	return err
}

// onToken returns the template of a secret key on the token, as Generate makes it.
func (t *Token) onToken(usage hsm.Usage, id []byte, label string) []*pkcs11.Attribute {
	template := t.profile(usage).secret(id, label)
	if t.optional.has(keptIn) {
		template = append(template, notCopyable()) // not on copies: SoftHSM refuses it there
	}
	return template
}

func notCopyable() *pkcs11.Attribute { return pkcs11.NewAttribute(pkcs11.CKA_COPYABLE, false) }
