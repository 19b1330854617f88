package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"countersign/appliance/adminapi"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/hsm"
)

func (s *Server) bindKeys(m *mux) {
	r := adminapi.Routes
	bind(m, r.KeyList, func(*http.Request, adminapi.None) ([]adminapi.Key, error) {
		return each(s.Appliance.Keys.List(), keyJSON), nil
	})
	bind(m, r.KeyShow, s.key)
	bind(m, r.KeyPlan, s.keyPlan)
	bind(m, r.KeyAttest, s.attestKeys)
	bindPreviewed(m, r.KeyCreate, s.step(keyplan.Create))
	bindPreviewed(m, r.KeyRotate, s.step(keyplan.Rotate))
	bindPreviewed(m, r.KeyActivate, s.step(keyplan.Activate))
	bindPreviewed(m, r.KeyRetire, s.step(keyplan.Retire))
	bindPreviewed(m, r.KeySuspend, s.step(keyplan.Suspend))
	bindPreviewed(m, r.KeyResume, s.step(keyplan.Resume))
	bindPreviewed(m, r.KeyDestroy, s.step(keyplan.Destroy))
	bindSent(m, r.KeyBackup, s.backUpKeys)
	bindSent(m, r.StoreBackup, s.copyStore)
	bind(m, r.KeyKept, s.kept)
	bind(m, r.StoreKept, s.kept)
}

// key answers with one version, NAME@VERSION, or with every version of a name.
func (s *Server) key(r *http.Request, _ adminapi.None) ([]adminapi.Key, error) {
	name, version, err := keyplan.ParseRef(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	var found []adminapi.Key
	for _, v := range s.Appliance.Keys.List() {
		if v.Name == name && (version == 0 || v.Version == version) {
			found = append(found, keyJSON(v))
		}
	}
	if found == nil {
		return nil, fmt.Errorf("key %s: %w", r.PathValue("name"), keyplan.ErrKeyName)
	}
	return found, nil
}

func (s *Server) keyPlan(*http.Request, adminapi.None) (adminapi.KeyPlan, error) {
	return adminapi.KeyPlan{
		Auto: s.Appliance.Keys.Auto(), Records: adminapi.Renewal(s.Appliance.Keys.Renewal()),
		Keys: each(s.Appliance.Keys.Due(), func(d keyplan.Due) adminapi.KeyDue {
			return adminapi.KeyDue{Name: d.Name, Version: d.Version, Standing: string(d.Standing), At: when(d.At), Next: d.Next}
		}),
	}, nil
}

func (s *Server) attestKeys(r *http.Request, _ adminapi.None) ([]adminapi.Finding, error) {
	found, err := s.Appliance.Keys.Attest(r.Context())
	return each(found, func(f keylife.Finding) adminapi.Finding {
		return adminapi.Finding{
			Key: f.Name, Token: f.Token, ID: hex.EncodeToString(f.ID), Origin: string(f.Origin),
			Good: f.Good(), Unknown: f.Unknown, Drift: append([]string{}, f.Drift...),
		}
	}), err
}

// stepped is the handler of a step of a key.
type stepped = func(r *http.Request, body adminapi.KeyStep) (*adminapi.Change, []adminapi.Key, error)

// step takes a step. With dry_run it answers with its result, or with its change request, without taking it.
func (s *Server) step(verb keyplan.Verb) stepped {
	return func(r *http.Request, body adminapi.KeyStep) (request *adminapi.Change, keys []adminapi.Key, err error) {
		name, version, err := keyplan.ParseRef(r.PathValue("name"))
		if err != nil {
			return nil, nil, err
		}
		step := keyplan.Step{Verb: verb, Name: name, Version: version, Early: body.Early, Compromised: body.Compromised}
		life, err := lifeOf(r)
		if err != nil {
			return nil, nil, err
		}
		var views []keyplan.View
		switch {
		case body.DryRun && body.Request:
			request, err = s.previewStep(r.Context(), step, life)
			return request, nil, err
		case body.DryRun:
			views, err = s.Appliance.Keys.Plan(r.Context(), step)
		default:
			views, err = s.Appliance.Keys.TakeWithin(r.Context(), step, life)
		}
		return nil, each(views, keyJSON), err
	}
}

// previewStep returns the change request that a step would make, one that requires nothing if the step needs no vote.
func (s *Server) previewStep(ctx context.Context, step keyplan.Step, life time.Duration) (*adminapi.Change, error) {
	c, asks, err := s.Appliance.Keys.Preview(ctx, step, life)
	if err != nil || !asks {
		return &adminapi.Change{}, err
	}
	request := changeJSON(c)
	return &request, nil
}

func keyJSON(v keyplan.View) adminapi.Key {
	k := adminapi.Key{
		Name: v.Name, Version: v.Version, State: string(v.State), Accepted: v.Accepted,
		Purpose: keyring.Purpose(v.Name), Algorithm: keyring.UsageOf(v.Name).String(),
		Root: v.Root, Origin: string(v.Origin), Tokens: append([]string{}, v.Tokens...), OnToken: v.OnToken, CreatedAt: v.CreatedAt,
		NotBefore: when(v.NotBefore), NotAfter: when(v.NotAfter), ActivatedAt: when(v.ActivatedAt), RetiredAt: when(v.RetiredAt),
		SuspendedAt: when(v.SuspendedAt), CompromisedAt: when(v.CompromisedAt), DestroyedAt: when(v.DestroyedAt),
		OverlapUntil: when(v.OverlapEnd),
	}
	if v.Sealed != nil {
		k.SealedFor = hex.EncodeToString(v.SealedFor)
	}
	if v.ID != (hsm.KeyID{}) {
		k.ID = hex.EncodeToString(v.ID[:])
	}
	if v.Public != nil {
		k.PublicKey = hex.EncodeToString(v.Public)
		if der, err := v.SPKI(); err == nil { // CKA_ID is the beginning of this hash
			sum := sha256.Sum256(der)
			k.SPKI = hex.EncodeToString(sum[:])
		}
	}
	return k
}
