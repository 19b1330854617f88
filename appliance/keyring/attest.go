package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/appliance/store"
	"countersign/hsm"
)

// Attester is a token that tells the attributes of every private and secret key object
// on it, of those too that no row knows.
type Attester interface {
	Objects(ctx context.Context) ([]Object, error)
}

// Object is a private or secret key as the token describes it, PKCS#11 v2.40 §4.7-4.10.
type Object struct {
	ID               hsm.KeyID
	Label            string
	Local            bool // CKA_LOCAL: made on this token
	AlwaysSensitive  bool // CKA_ALWAYS_SENSITIVE
	NeverExtractable bool // CKA_NEVER_EXTRACTABLE
	Extractable      bool
	Modifiable       bool
	Usages           []string // attributes that are true, "sign", "derive", "wrap", "unwrap", … sorted
	Mechanisms       []string // CKA_ALLOWED_MECHANISMS, "CKM_ECDSA", …; nil: the module has no such attribute
}

// ErrNoAttest: the token's driver does not tell the attributes of its objects.
var ErrNoAttest = errors.New("the token's driver does not tell the attributes of its keys")

// Finding is an object of the token as it was compared with the registry.
type Finding struct {
	Name    string       // name@version, or the object's label where no row knows it
	Origin  store.Origin // how the registry has it that the key came here; "" where no row knows it
	ID      hsm.KeyID
	Drift   []string // what is not as it must be; nil: all is
	Unknown bool     // no row has this id
}

// Attest compares every object on the token with the registry. A row whose object is
// missing is a finding too. An error wraps [ErrNoAttest] or is the token's.
func (r *Keyring) Attest(ctx context.Context) ([]Finding, error) {
	token, ok := r.token.(Attester)
	if !ok {
		return nil, ErrNoAttest
	}
	objects, err := token.Objects(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the objects of the token: %w", err)
	}
	v := r.live.Load()
	var found []Finding
	seen := map[hsm.KeyID]int{}
	for _, o := range objects {
		seen[o.ID]++
		found = append(found, v.attest(o))
	}
	for _, k := range v.all() {
		if n := seen[k.ID]; k.OnToken && n != 1 {
			found = append(found, Finding{Name: k.label(), Origin: k.Origin, ID: k.ID, Drift: []string{fmt.Sprintf("%d objects", n)}})
		}
	}
	return found, nil
}

func (v *ring) attest(o Object) Finding {
	i := slices.IndexFunc(v.all(), func(k Key) bool { return k.ID == o.ID })
	if i < 0 {
		return Finding{Name: o.Label, ID: o.ID, Unknown: true}
	}
	k := v.all()[i]
	return Finding{Name: k.label(), Origin: k.Origin, ID: k.ID, Drift: o.drift(k)}
}

// expected are the usages and the one mechanism of each kind of key.
var expected = map[hsm.Usage]struct {
	usages    []string
	mechanism string
}{
	hsm.SignP256:   {[]string{"sign"}, "CKM_ECDSA"},
	hsm.DeriveP256: {[]string{"derive"}, "CKM_ECDH1_DERIVE"},
	hsm.MACKey:     {[]string{"sign"}, "CKM_SHA256_HMAC"},
	hsm.WrapKey:    {[]string{"unwrap", "wrap"}, "CKM_AES_KEY_WRAP_PAD"},
}

// drift is what of an object is not as its row and its name ask. What came from
// another token has lost the attributes that tell of its youth.
func (o Object) drift(k Key) (drift []string) {
	want := expected[usages[k.Name]]
	for _, c := range []struct {
		bad  bool
		what string
	}{
		{k.Origin == store.Generated && !o.Local, "not CKA_LOCAL"},
		{k.Origin == store.Generated && !o.AlwaysSensitive, "not CKA_ALWAYS_SENSITIVE"},
		{k.Origin == store.Generated && !o.NeverExtractable, "not CKA_NEVER_EXTRACTABLE"},
		{o.Extractable, "CKA_EXTRACTABLE"},
		{o.Modifiable, "CKA_MODIFIABLE"},
		{!slices.Equal(o.Usages, want.usages), "usages " + strings.Join(o.Usages, " ")},
		{o.Mechanisms != nil && !slices.Equal(o.Mechanisms, []string{want.mechanism}), "mechanisms " + strings.Join(o.Mechanisms, " ")},
	} {
		if c.bad {
			drift = append(drift, c.what)
		}
	}
	return drift
}

// AttestPeriod is between two comparisons that the daemon makes by itself.
const AttestPeriod = 24 * time.Hour
