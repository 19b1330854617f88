package pkcs11

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// rewrapping returns a call of Rewrap with good arguments except for the key From.
func rewrapping(t *testing.T, from hsm.KeyID) hsm.Rewrap {
	t.Helper()
	i, _ := imported(t, "rewrap")
	kept, to := i.Wrap, i
	to.Wrap = from
	wrapped, err := shared.Import(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	return hsm.Rewrap{From: from, To: kept, Wrapped: wrapped}
}

// Rewrapping leaves no session object behind, whether it succeeds or not.
func TestRewrapLeavesNothing(t *testing.T) {
	r := rewrapping(t, generate(t, "rewrap-from", hsm.WrapKey).ID)
	if _, err := shared.Rewrap(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	bad := r
	bad.Wrapped = make([]byte, 40)
	if _, err := shared.Rewrap(t.Context(), bad); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("nothing that was wrapped: %v, want ErrInput", err)
	}
	noSessionObjects(t)
}

// A key whose CKA_UNWRAP_TEMPLATE makes every secret not extractable returns that error
// for its secrets. A secret of another key is reported first.
func TestRewrapKeptIn(t *testing.T) {
	r := rewrapping(t, olderWrapKey(t))
	if _, err := shared.Rewrap(t.Context(), r); !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), "CKA_UNWRAP_TEMPLATE") {
		t.Errorf("from a key of the older form: %v, want ErrUnsupported", err)
	}
	if _, err := shared.MACWrapped(t.Context(), r.From, r.Wrapped, nil); err != nil {
		t.Errorf("what it keeps: %v", err)
	}
	r.Wrapped = rewrapping(t, generate(t, "rewrap-other", hsm.WrapKey).ID).Wrapped
	if _, err := shared.Rewrap(t.Context(), r); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("what another key keeps: %v, want ErrInput", err)
	}
	noSessionObjects(t)
}

// olderWrapKey makes a wrap key with CKA_UNWRAP_TEMPLATE {sensitive, not extractable}, as
// earlier releases did. miekg/pkcs11 has no nested attributes, but accepts the bytes of
// the array: CK_ATTRIBUTE is type, pointer and length.
func olderWrapKey(t *testing.T) hsm.KeyID {
	t.Helper()
	var id hsm.KeyID
	copy(id[:], random(len(id)))
	values := []byte{1, 0}
	var array []byte
	for i, typ := range []uint64{pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE} {
		for _, word := range []uint64{typ, uint64(uintptr(unsafe.Pointer(&values[i]))), 1} {
			array = binary.NativeEndian.AppendUint64(array, word)
		}
	}
	p := shared.profile(hsm.WrapKey)
	template := append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_UNWRAP_TEMPLATE, array)}, p.secret(id[:], fresh("older"))...)
	raw(t, func(s *session) error {
		_, err := shared.ctx.GenerateKey(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}, template)
		return err
	})
	runtime.KeepAlive(values)
	return id
}
