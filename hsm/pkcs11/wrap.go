package pkcs11

import (
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// This file wraps secrets of 32 bytes for storage, and unwraps them. The stored form says how it was
// wrapped: 40 bytes are by RFC 5649, and otherwise the first byte says it. A token whose module learns
// RFC 5649 later therefore still opens earlier ones.

// length returns the length of the stored form, in bytes.
func (w wrapWay) length() int {
	return map[byte]int{0: check.WrappedLen, check.KeptKW: check.KeptKWLen, check.KeptGCM: check.KeptGCMLen, check.KeptCBC: check.KeptCBCLen}[w.form]
}

// wrapUnder is C_WrapKey in the way that was chosen.
func (t *Token) wrapUnder(s *session, with, key pkcs11.ObjectHandle) ([]byte, error) {
	w := t.ways.wrapping
	if w.form == 0 {
		wrapped, err := t.native.wrap(s, w.mechanism, with, key)
		return wrapped, at("C_WrapKey with "+w.name, err)
	}
	iv := random(w.iv)
	wrapped, err := t.ctx.WrapKey(s.handle, w.with(iv), with, key)
	return slices.Concat([]byte{w.form}, iv, wrapped), at("C_WrapKey with "+w.name, err)
}

// unwrapUnder is C_UnwrapKey in the way that the wrapping says.
func (t *Token) unwrapUnder(s *session, with pkcs11.ObjectHandle, kept []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if len(kept) == check.WrappedLen {
		if t.ways.wrapping.form != 0 {
			return 0, fmt.Errorf("kept by RFC 5649, which the module does not do: %w", errLacking)
		}
		return t.ctx.UnwrapKey(s.handle, t.wrapping(), with, kept, template)
	}
	for _, w := range wrapWays {
		if w.form != 0 && kept[0] == w.form && len(kept) == w.length() {
			return t.ctx.UnwrapKey(s.handle, w.with(kept[1:1+w.iv]), with, kept[1+w.iv:], template)
		}
	}
	return 0, errWrapped
}

// canCopy returns [hsm.ErrUnsupported] if the module cannot make or open sealed copies.
func (t *Token) canCopy() error {
	if t.ways.wrapping.form != 0 {
		return fmt.Errorf("module lacks %s, needed for %s: %w", wrapPad, copying.blocks, hsm.ErrUnsupported)
	}
	return t.have.check(copying)
}
