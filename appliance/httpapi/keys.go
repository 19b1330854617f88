package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"countersign/appliance/admin"
	"countersign/appliance/keyring"
	"countersign/hsm"
)

func (a *Admin) keys(*http.Request) (any, error) { return allKeyWords(a.Appliance.Keys()), nil }

// key shows one version, NAME@VERSION, or every version of a name.
func (a *Admin) key(r *http.Request) (any, error) {
	name, version, err := keyring.ParseRef(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	var found []keyring.View
	for _, v := range a.Appliance.Keys() {
		if v.Name == name && (version == 0 || v.Version == version) {
			found = append(found, v)
		}
	}
	if found == nil {
		return nil, fmt.Errorf("key %s: %w", r.PathValue("name"), keyring.ErrKeyName)
	}
	return allKeyWords(found), nil
}

// keyPlan is what is to be done.
func (a *Admin) keyPlan(*http.Request) (any, error) {
	plan := admin.KeyPlan{Auto: a.Appliance.KeepsSchedule(), Keys: []admin.KeyDue{}, Records: admin.Renewal(a.Appliance.Renewal())}
	for _, d := range a.Appliance.KeysDue() {
		plan.Keys = append(plan.Keys, admin.KeyDue{Name: d.Name, Version: d.Version, Standing: string(d.Standing), At: when(d.At), Next: d.Next})
	}
	return plan, nil
}

// attestKeys compares the token with the registry.
func (a *Admin) attestKeys(r *http.Request) (any, error) {
	found, err := a.Appliance.AttestKeys(r.Context())
	if err != nil {
		return nil, err
	}
	out := []admin.Finding{}
	for _, f := range found {
		out = append(out, admin.Finding{
			Key: f.Name, Token: f.Token, ID: hex.EncodeToString(f.ID), Origin: string(f.Origin),
			Good: f.Good(), Unknown: f.Unknown, Drift: append([]string{}, f.Drift...),
		})
	}
	return out, nil
}

// changeKey takes a step of a key's life, or says what it would come to.
func (a *Admin) changeKey(verb keyring.Verb) adminProcess {
	return func(r *http.Request) (any, error) {
		var req admin.KeyStep
		if err := decodeBody(r, &req); err != nil {
			return nil, err
		}
		name, version, err := keyring.ParseRef(r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		step := keyring.Step{Verb: verb, Name: name, Version: version, Early: req.Early, Compromised: req.Compromised}
		life, err := lifeOf(r)
		if err != nil {
			return nil, err
		}
		var views []keyring.View
		if req.DryRun {
			views, err = a.Appliance.PlanKey(r.Context(), step)
		} else {
			views, err = a.Appliance.ChangeKeyWithin(r.Context(), step, life)
		}
		return allKeyWords(views), err
	}
}

func allKeyWords(views []keyring.View) []admin.Key {
	out := []admin.Key{}
	for _, v := range views {
		out = append(out, keyWords(v))
	}
	return out
}

func keyWords(v keyring.View) admin.Key {
	w := admin.Key{
		Name: v.Name, Version: v.Version, State: string(v.State), Accepted: v.Accepted,
		Purpose: keyring.Purpose(v.Name), Algorithm: keyring.UsageOf(v.Name).String(),
		Root: v.Root, Origin: string(v.Origin), Tokens: append([]string{}, v.Tokens...), OnToken: v.OnToken, CreatedAt: v.CreatedAt,
		NotBefore: when(v.NotBefore), NotAfter: when(v.NotAfter), ActivatedAt: when(v.ActivatedAt), RetiredAt: when(v.RetiredAt),
		SuspendedAt: when(v.SuspendedAt), CompromisedAt: when(v.CompromisedAt), DestroyedAt: when(v.DestroyedAt),
		OverlapUntil: when(v.OverlapEnd),
	}
	if v.Sealed != nil {
		w.SealedFor = hex.EncodeToString(v.SealedFor)
	}
	if v.ID != (hsm.KeyID{}) {
		w.ID = hex.EncodeToString(v.ID[:])
	}
	if v.Public != nil {
		w.PublicKey = hex.EncodeToString(v.Public)
		w.SPKI = spki(v)
	}
	return w
}

// spki is the SHA-256 of the SubjectPublicKeyInfo, of which CKA_ID is the beginning.
func spki(v keyring.View) string {
	der, err := v.SPKI()
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
