package keyring

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"countersign/appliance/store"
	"countersign/hsm"
)

// Finding is an object of the token as it was compared with the registry.
type Finding struct {
	Name    string // name@version, or the object's label where no row knows it
	Token   string // which of several tokens; "" where there is one
	ID      []byte // CKA_ID, 20 bytes where a row knows it
	Origin  store.Origin
	Drift   []string // what is not as it must be; nil: all is
	Unknown bool     // no row has this id
}

// Good tells that nothing is wrong.
func (f Finding) Good() bool { return !f.Unknown && f.Drift == nil }

// Attest compares every object on every token with the registry. A row of which a token
// has no object, or two, is a finding too. An error is the token's.
func (r *Keyring) Attest(ctx context.Context) ([]Finding, error) {
	objects, err := r.token.Objects(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the objects of the token: %w", err)
	}
	v := r.live.Load()
	var found []Finding
	counts := map[string]map[hsm.KeyID]int{}
	for _, o := range objects {
		if counts[o.Token] == nil {
			counts[o.Token] = map[hsm.KeyID]int{}
		}
		if len(o.ID) == len(hsm.KeyID{}) {
			counts[o.Token][hsm.KeyID(o.ID)]++
		}
		found = append(found, v.attest(o))
	}
	if len(counts) == 0 {
		counts[""] = nil
	}
	return append(found, v.miscounted(counts)...), nil
}

// miscounted are the keys of which a token does not have exactly one object.
func (v *ring) miscounted(counts map[string]map[hsm.KeyID]int) (found []Finding) {
	for _, token := range slices.Sorted(maps.Keys(counts)) {
		for _, k := range v.all() {
			if n := counts[token][k.ID]; k.expected() && n != 1 {
				found = append(found, Finding{Name: k.label(), Token: token, ID: k.ID[:], Origin: k.Origin, Drift: []string{fmt.Sprintf("%d objects", n)}})
			}
		}
	}
	return found
}

// expected tells whether a key has an object: all but roots, whose token may lie in a
// safe, and what is destroyed, unless they were found.
func (k Key) expected() bool { return k.OnToken || k.Name != Root && k.DestroyedAt.IsZero() }

// attest compares one object. Versions that a new root certified again have the key
// pair of the first, whose name the object has.
func (v *ring) attest(o hsm.Object) Finding {
	i := slices.IndexFunc(v.all(), func(k Key) bool { return bytes.Equal(k.ID[:], o.ID) })
	if i < 0 {
		return Finding{Name: o.Label, Token: o.Token, ID: o.ID, Unknown: true}
	}
	k := v.all()[i]
	f := Finding{Name: k.label(), Token: o.Token, ID: o.ID, Origin: k.Origin, Drift: drift(o, k)}
	if !k.DestroyedAt.IsZero() {
		f.Drift = append(f.Drift, "destroyed, and still there")
	}
	return f
}

// shape is what the objects of a usage look like.
type shape struct {
	class, keyType string
	usages         hsm.Attributes
	mechanisms     []string // one of them
}

var shapes = map[hsm.Usage]shape{
	hsm.SignP256:   {"CKO_PRIVATE_KEY", "CKK_EC", hsm.AttrSign, []string{"CKM_ECDSA"}},
	hsm.DeriveP256: {"CKO_PRIVATE_KEY", "CKK_EC", hsm.AttrDerive, []string{"CKM_ECDH1_DERIVE"}},
	hsm.MACKey:     {"CKO_SECRET_KEY", "CKK_GENERIC_SECRET", hsm.AttrSign, []string{"CKM_SHA256_HMAC"}},
	// One mechanism by its names of PKCS#11 v2.40 and v3.0.
	hsm.WrapKey: {"CKO_SECRET_KEY", "CKK_AES", hsm.AttrWrap | hsm.AttrUnwrap, []string{"CKM_AES_KEY_WRAP_PAD", "CKM_AES_KEY_WRAP_KWP"}},
}

// drift is what of an object is not as its row and its name ask. That it may be read
// or changed has to be denied in so many words; of the rest a token may be silent.
func drift(o hsm.Object, k Key) (drift []string) {
	want := shapes[usages[k.Name]]
	must := hsm.AttrPrivate | hsm.AttrSensitive
	never := hsm.AttrExtractable | hsm.AttrModifiable
	for _, name := range (must &^ o.True).Names() {
		drift = append(drift, "not "+name)
	}
	drift = append(drift, (never & o.True).Names()...)
	if o.Told&hsm.AttrExtractable == 0 {
		drift = append(drift, "CKA_EXTRACTABLE not told")
	}
	if o.Class != want.class || o.KeyType != want.keyType {
		drift = append(drift, fmt.Sprintf("%s of %s", o.Class, o.KeyType))
	}
	if got := o.True & hsm.AttrUsages; got != want.usages {
		drift = append(drift, "usages "+strings.Join(got.Names(), " "))
	}
	if o.Mechanisms != nil && (len(o.Mechanisms) != 1 || !slices.Contains(want.mechanisms, o.Mechanisms[0])) {
		drift = append(drift, "mechanisms "+strings.Join(o.Mechanisms, " "))
	}
	for _, name := range (youth(o, k) & o.Told &^ o.True).Names() {
		drift = append(drift, "not "+name)
	}
	return drift
}

// youth are the attributes that tell of a key's youth, as far as the way in which it
// came onto this token has left them (PKCS#11 v2.40 §4.9): what was made there to stay
// has all three; making sealed copies takes the last, and what was put together from
// elsewhere has none.
func youth(o hsm.Object, k Key) hsm.Attributes {
	const made = hsm.AttrLocal | hsm.AttrAlwaysSensitive
	switch {
	case k.Origin == store.Generated:
		return made | hsm.AttrNeverExtractable
	case k.Origin == store.Copied && (o.Token == "" || o.True&made != 0):
		return made // with several tokens, on the one it was made on
	}
	return 0
}

// AttestPeriod is between two comparisons that the daemon makes by itself.
const AttestPeriod = 24 * time.Hour
