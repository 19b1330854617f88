package pkcs11

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Rewrap implements [hsm.Token] with C_UnwrapKey and C_WrapKey of a sensitive
// session object, which is extractable for as long as it takes: PKCS#11 wraps
// nothing else.
func (t *Token) Rewrap(ctx context.Context, r hsm.Rewrap) (wrapped []byte, err error) {
	if err := check.Wrapped(r.Wrapped); err != nil {
		return nil, err
	}
	keys := []need{{id: r.From, usage: hsm.WrapKey}, {id: r.To, usage: hsm.WrapKey}}
	err = t.useAll(ctx, keys, func(s *session, o []object) (err error) {
		wrapped, err = t.rewrap(s, o[0], o[1], r.Wrapped)
		return err
	})
	return wrapped, err
}

func (t *Token) rewrap(s *session, from, to object, old []byte) (wrapped []byte, err error) {
	secret, err := t.ctx.UnwrapKey(s.handle, t.wrapping(), from.handle, old, passing(pkcs11.CKK_GENERIC_SECRET, true))
	if unsupported(err) {
		return nil, t.keptIn(s, from, old, at("C_UnwrapKey", err))
	}
	if err != nil {
		return nil, t.judged(s, from, err)
	}
	defer t.destroy(s, secret, &err)
	wrapped, err = t.native.wrap(s, t.kwp, to.handle, secret)
	if code, _ := codeOf(err); code == pkcs11.CKR_KEY_UNEXTRACTABLE { // the module made it so, whatever was asked for
		return nil, t.keptIn(s, from, old, at("C_WrapKey", err))
	}
	return wrapped, at("C_WrapKey", err)
}

// keptIn is the error of a secret that from does not let out again. What from does
// not keep at all is told first: it may be under another key, which does.
func (t *Token) keptIn(s *session, from object, wrapped []byte, refused error) (err error) {
	secret, err := t.unwrap(s, from, wrapped)
	if err != nil {
		return err
	}
	defer t.destroy(s, secret, &err)
	return fmt.Errorf("%v: CKA_UNWRAP_TEMPLATE of %s keeps what it unwraps from being wrapped anew: %w", refused, from.Label, errLacking)
}
