package hsmtest

import (
	"bytes"
	"slices"
	"testing"

	"countersign/hsm"
)

// object is the one object of a key.
func (s *suite) object(t *testing.T, k hsm.Key) hsm.Object {
	t.Helper()
	all, err := s.token.Objects(t.Context())
	must(t, err)
	all = slices.DeleteFunc(all, func(o hsm.Object) bool { return !bytes.Equal(o.ID, k.ID[:]) || o.Label != k.Label })
	if len(all) == 0 {
		t.Fatalf("%s has no object", k.Label)
	}
	return all[0]
}

func (s *suite) testObjects(t *testing.T) {
	for _, k := range s.several(t) {
		o := s.object(t, k)
		if pair := o.Class == "CKO_PRIVATE_KEY"; pair != k.Usage.Pair() || o.KeyType == "" {
			t.Errorf("%s: %s, %s", k.Label, o.Class, o.KeyType)
		}
		if o.True&hsm.AttrUsages != k.Usage.Kind().May {
			t.Errorf("%s may %v", k.Label, o.True.Names())
		}
		const closed = hsm.AttrPrivate | hsm.AttrSensitive
		if !o.Has(closed) || o.True&hsm.AttrExtractable != 0 || o.True&^o.Told != 0 {
			t.Errorf("%s is %v of %v", k.Label, o.True.Names(), o.Told.Names())
		}
		ages := hsm.AttrHistory
		if k.Copied {
			ages &^= hsm.AttrNeverExtractable
		}
		if missing := ages & o.Told &^ o.True; missing != 0 {
			t.Errorf("%s was made here, and is not %v", k.Label, missing.Names())
		}
	}
	k := s.generate(t, "gone", hsm.MACKey)
	before, err := s.token.Objects(t.Context())
	must(t, err)
	s.drop(t, k.ID)
	if after, err := s.token.Objects(t.Context()); err != nil || len(after) >= len(before) {
		t.Errorf("%d objects, %d when one was destroyed: %v", len(before), len(after), err)
	}
}

// A key of which copies were made was extractable, and one that was restored comes
// from elsewhere.
func (s *suite) testObjectsTell(t *testing.T) {
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.MACKey} {
		k, r, _ := s.copied(t, "tells-"+usage.String(), usage)
		made := s.object(t, k)
		s.drop(t, k.ID)
		_, err := s.token.Restore(t.Context(), r)
		must(t, err)
		restored := s.object(t, k)
		if !k.Copied || made.Has(hsm.AttrNeverExtractable) {
			t.Errorf("%s: copies were made, and it is %v", usage, made.True.Names())
		}
		if restored.Has(hsm.AttrLocal) || restored.Has(hsm.AttrNeverExtractable) {
			t.Errorf("%s was restored, and is %v", usage, restored.True.Names())
		}
	}
}
