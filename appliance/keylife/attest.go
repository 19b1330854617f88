package keylife

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/hsm"
)

// Finding is the comparison of one object of the token with the registry.
type Finding struct {
	Name    string // name@version, or the object's label if no row has its id
	Token   string // which of several tokens; "" if there is one
	ID      []byte // of the key in the registry, 20 bytes; of an unknown object CKA_ID
	Origin  store.Origin
	Drift   []string // differences from what the row requires; nil: none
	Unknown bool     // no row has this id
}

// Good reports whether nothing is wrong.
func (f Finding) Good() bool { return !f.Unknown && f.Drift == nil }

// AttestPeriod is the time between the daemon's comparisons.
const AttestPeriod = 24 * time.Hour

// Attest compares every object on every token with the registry. A row without exactly
// one object on each token is a finding too. An error is the token's.
func Attest(ctx context.Context, keys *keyuse.Keys) ([]Finding, error) {
	objects, err := keys.Token().Objects(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the objects of the token: %w", err)
	}
	all := keys.Ring().Keys()
	var found []Finding
	counts := map[string]map[hsm.KeyID]int{}
	for _, o := range objects {
		if counts[o.Token] == nil {
			counts[o.Token] = map[hsm.KeyID]int{}
		}
		if o.Key != (hsm.KeyID{}) {
			counts[o.Token][o.Key]++
		}
		found = append(found, attest(all, o))
	}
	if len(counts) == 0 {
		counts[""] = nil
	}
	for _, token := range slices.Sorted(maps.Keys(counts)) {
		for _, k := range all {
			if n := counts[token][k.ID]; expected(k) && n != 1 {
				drift := []string{fmt.Sprintf("%d objects", n)}
				found = append(found, Finding{Name: k.Label(), Token: token, ID: k.ID[:], Origin: k.Origin, Drift: drift})
			}
		}
	}
	return found, nil
}

// expected reports whether a key must have an object: all except destroyed keys and
// roots, whose token may lie in a safe, unless they were found.
func expected(k keyring.Key) bool {
	return k.OnToken || k.Name != keyring.Root && k.DestroyedAt.IsZero()
}

// attest compares one object. Versions that a new root certified again have the key pair
// of the first, whose name the object has.
func attest(all []keyring.Key, o hsm.Object) Finding {
	i := slices.IndexFunc(all, func(k keyring.Key) bool { return k.ID == o.Key })
	if i < 0 {
		return Finding{Name: o.Label, Token: o.Token, ID: o.ID, Unknown: true}
	}
	k := all[i]
	f := Finding{Name: k.Label(), Token: o.Token, ID: k.ID[:], Origin: k.Origin, Drift: drift(o, k)}
	if !k.DestroyedAt.IsZero() {
		f.Drift = append(f.Drift, "destroyed, and still there")
	}
	return f
}

// aliases lists, for a key type or mechanism of PKCS#11 v2.40, the ones that other modules use instead.
var aliases = map[string][]string{
	"CKM_AES_KEY_WRAP_PAD": {
		"CKM_AES_KEY_WRAP_KWP", "CKM_LUNA_AES_KWP", "CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD",
		"CKM_AES_KEY_WRAP", "CKM_AES_GCM", "CKM_AES_CBC_PAD",
	},
	"CKK_GENERIC_SECRET": {"CKK_SHA256_HMAC"},
}

func same(got, want string) bool { return got == want || slices.Contains(aliases[want], got) }

// drift lists where an object differs from what its row requires. The token must state
// that the object can be neither read nor changed; it may omit other attributes.
func drift(o hsm.Object, k keyring.Key) (drift []string) {
	usage := keyring.UsageOf(k.Name)
	want := usage.Form(o.True & hsm.AttrUsages)
	must := hsm.AttrPrivate | hsm.AttrSensitive
	never := hsm.AttrExtractable | hsm.AttrModifiable
	for _, name := range (must &^ o.True).Names() {
		drift = append(drift, "not "+name)
	}
	drift = append(drift, (never & o.True).Names()...)
	if o.Told&hsm.AttrExtractable == 0 {
		drift = append(drift, "CKA_EXTRACTABLE not told")
	}
	if o.Class != usage.Class() || !same(o.KeyType, want.KeyType) {
		drift = append(drift, fmt.Sprintf("%s of %s", o.Class, o.KeyType))
	}
	if got := o.True & hsm.AttrUsages; got != want.May {
		drift = append(drift, "usages "+strings.Join(got.Names(), " "))
	}
	if o.Mechanisms != nil && !slices.EqualFunc(o.Mechanisms, want.Mechanisms, same) {
		drift = append(drift, "mechanisms "+strings.Join(o.Mechanisms, " "))
	}
	for _, name := range ((generation(o, k) | hsm.AttrRestricted) & o.Told &^ o.True).Names() {
		drift = append(drift, "not "+name)
	}
	return drift
}

// generation returns the attributes that the generation of a key has set and the way it
// came onto this token has kept (PKCS#11 v2.40 §4.9). A key generated to stay has all
// three; sealed copies clear the last one; a key imported from elsewhere has none.
func generation(o hsm.Object, k keyring.Key) hsm.Attributes {
	const made = hsm.AttrLocal | hsm.AttrAlwaysSensitive
	switch {
	case k.Origin == store.Generated:
		return made | hsm.AttrNeverExtractable
	case k.Origin == store.Copied && (o.Token == "" || o.True&made != 0):
		return made // of several tokens, the one that generated it
	}
	return 0
}
