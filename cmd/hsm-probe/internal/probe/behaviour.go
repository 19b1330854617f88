package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// Answers.
const (
	accepted = "accepted"
	enforced = "enforced"
	ignored  = "ignored"
	yes      = "yes"
	no       = "no"
)

// questions are asked one after the other. If one fails, its error is the answer.
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

// refused is the answer of a module that does not accept a template.
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

// place says where the objects of this probe were made.
func (p *prober) place() (string, error) {
	if p.token {
		return "on the token, the module has no session objects of a kind", nil
	}
	return "session objects", nil
}

// Sessions opened at most to find the limit, and how long that may take.
const (
	manySessions  = 1024
	quickSessions = 128
	limitTime     = 5 * time.Second
)

// another runs f in a second session.
func (p *prober) another(f func(pkcs11.SessionHandle) (string, error)) (answer string, err error) {
	s, err := p.Session()
	if err != nil {
		return "", at("C_OpenSession", err)
	}
	defer func() {
		if gone := p.CloseSession(s); err == nil {
			err = at("C_CloseSession", gone)
		}
	}()
	return f(s)
}

func (p *prober) sharing() (string, error) {
	if p.token {
		return "", errNoKey
	}
	id, err := p.value(p.p256.private, pkcs11.CKA_ID)
	if err != nil {
		return "", err
	}
	return p.another(func(s pkcs11.SessionHandle) (string, error) {
		seen, err := find(p.Module, s, []*pkcs11.Attribute{attr(pkcs11.CKA_ID, id)})
		if len(seen) > 0 {
			return yes, err
		}
		return no, err
	})
}

func (p *prober) loginForAll() (string, error) {
	return p.another(func(s pkcs11.SessionHandle) (string, error) {
		info, err := p.GetSessionInfo(s)
		if err != nil {
			return "", at("C_GetSessionInfo", err)
		}
		if info.State == pkcs11.CKS_RW_USER_FUNCTIONS {
			return yes, nil
		}
		return no, nil
	})
}

// wrongPIN needs permission: a token that checks the PIN counts it.
func (p *prober) wrongPIN() (string, error) {
	if !p.order.WrongPIN {
		return "not tried, see --wrong-pin", nil
	}
	return p.another(func(s pkcs11.SessionHandle) (string, error) {
		err := p.Ctx.Login(s, pkcs11.CKU_USER, "0000-wrong-0000")
		if err == nil {
			return accepted, nil
		}
		return refused(err), nil
	})
}

// sessionLimit opens sessions until the token refuses one, and closes them all.
func (p *prober) sessionLimit() (err error) {
	most, end := manySessions, time.Now().Add(limitTime)
	if p.order.Quick {
		most, end = quickSessions, p.end
	}
	var open []pkcs11.SessionHandle
	defer func() {
		for _, s := range open {
			err = errors.Join(err, at("C_CloseSession", p.CloseSession(s)))
		}
	}()
	for len(open) < most && time.Now().Before(end) && p.ctx.Err() == nil {
		s, err := p.Session()
		if err != nil {
			p.found("session_limit_reached", fmt.Sprintf("%d beside one, then %v", len(open), err))
			return nil //nolint:nilerr // the limit is found
		}
		open = append(open, s)
	}
	p.found("session_limit_reached", fmt.Sprintf("no, %d were opened", len(open)))
	return nil
}
