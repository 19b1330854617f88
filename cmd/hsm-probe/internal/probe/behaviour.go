package probe

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Answers to what the standard leaves to the module.
const (
	accepted = "accepted"
	enforced = "enforced"
	ignored  = "ignored"
	yes      = "yes"
	no       = "no"
)

// questions are asked one by one; a question that fails has its error for an answer.
var questions = []struct {
	name string
	ask  func(*prober) (string, error)
}{
	{"ec_point_encoding", (*prober).pointForm},
	{"duplicate_id", func(p *prober) (string, error) { return p.twice(pkcs11.CKA_ID) }},
	{"duplicate_label", func(p *prober) (string, error) { return p.twice(pkcs11.CKA_LABEL) }},
	{"allowed_mechanisms", (*prober).allowedMechanisms},
	{"unwrap_template", (*prober).unwrapTemplate},
	{"copyable_false", (*prober).copyable},
	{"session_objects_seen_by_other_sessions", (*prober).sharing},
	{"login_counts_for_all_sessions", (*prober).loginForAll},
	{"wrong_pin_after_login", (*prober).wrongPIN},
	{"temporary_objects", (*prober).place},
}

func (p *prober) behaviour() error {
	for _, q := range questions {
		if !p.hasTime() {
			p.skip(q.name)
			continue
		}
		answer, err := q.ask(p)
		if err != nil {
			answer = "not known: " + err.Error()
		}
		p.found(q.name, answer)
	}
	return nil
}

func (p *prober) pointForm() (string, error) {
	if p.p256.point == nil {
		return "", errNoKey
	}
	point, form := bare(p.p256.point)
	if len(point) != 65 || point[0] != 4 { // SEC 1 §2.3.3, uncompressed
		return fmt.Sprintf("%d bytes in no known encoding", len(point)), nil
	}
	return form, nil
}

// refused is the answer of a module that does not take a template.
func refused(err error) string {
	var code pkcs11.Error
	if errors.As(err, &code) {
		return "refused, " + code.Error()
	}
	return "refused, " + err.Error()
}

// twice makes two secrets that share one attribute.
func (p *prober) twice(typ uint) (string, error) {
	var shared *pkcs11.Attribute
	for range 2 {
		draft := p.draft(p.token)
		for i, a := range draft {
			if a.Type == typ {
				if shared == nil {
					shared = a
				}
				draft[i] = shared
			}
		}
		h, err := p.GenerateKey(p.main, mech(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, nil), append(draft, attr(pkcs11.CKA_VALUE_LEN, 32)))
		if err != nil {
			return refused(err), nil
		}
		p.keep(h)
	}
	return accepted, nil
}

// allowedMechanisms: does a key for HMAC-SHA-256 alone refuse HMAC-SHA-512?
func (p *prober) allowedMechanisms() (string, error) {
	only := attr(pkcs11.CKA_ALLOWED_MECHANISMS, binary.NativeEndian.AppendUint64(nil, pkcs11.CKM_SHA256_HMAC))
	h, err := p.generate(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, attr(pkcs11.CKA_SIGN, true), only)
	if err != nil {
		return refused(err), nil
	}
	if _, err := p.sign(mech(pkcs11.CKM_SHA256_HMAC, nil), h, nil); err != nil {
		return "", err
	}
	if _, err := p.sign(mech(pkcs11.CKM_SHA512_HMAC, nil), h, nil); err != nil {
		return enforced, nil
	}
	return ignored, nil
}

// unwrapTemplate: is what a key unwraps sensitive although it is asked for readable?
func (p *prober) unwrapTemplate() (string, error) {
	if p.secret == 0 {
		return "", errNoKey
	}
	template := append(p.draft(p.token), readable(pkcs11.CKK_AES, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP)...)
	wrapping, err := p.generateWrapping(append(template, attr(pkcs11.CKA_VALUE_LEN, 32)))
	if err != nil {
		return refused(err), nil
	}
	p.keep(wrapping)
	wrapped, err := p.WrapKey(p.main, mech(ckmAESKeyWrapPad, nil), wrapping, p.secret)
	if err != nil {
		return "", at("C_WrapKey", err)
	}
	h, err := p.UnwrapKey(p.main, mech(ckmAESKeyWrapPad, nil), wrapping, wrapped,
		append(p.draft(p.token), readable(pkcs11.CKK_GENERIC_SECRET)...))
	if err != nil {
		return enforced, nil // asking for something else is an error
	}
	p.keep(h)
	if _, err := p.value(h, pkcs11.CKA_VALUE); err != nil {
		return enforced, nil
	}
	return ignored, nil
}

func (p *prober) copyable() (string, error) {
	h, err := p.generate(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, attr(pkcs11.CKA_COPYABLE, false))
	if err != nil {
		return refused(err), nil
	}
	copied, err := p.CopyObject(p.main, h, p.draft(p.token))
	if err != nil {
		return enforced, nil
	}
	p.keep(copied)
	return ignored, nil
}

// place tells where the objects of this probe had to be made.
func (p *prober) place() (string, error) {
	if p.token {
		return "on the token, the module has no session objects of a kind", nil
	}
	return "session objects", nil
}
