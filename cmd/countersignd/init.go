package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/appliance/anchor"
	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/keyring/chain"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/internal/config"
	"countersign/policy"
)

// errInitialized means that init was run on this store before.
var errInitialized = errors.New("the store is initialized already; init never replaces a trust domain")

// initialize creates keys, policy, trust domain and anchor on an empty token and store.
// The trust is stored last: a run that was interrupted before leaves no appliance, and
// says so when it is repeated.
func initialize(ctx context.Context, p *parts, cfg *config.Appliance) error {
	domain := cfg.Trust.Domain
	switch founded, err := p.founded(ctx); {
	case err != nil:
		return err
	case founded:
		return errInitialized
	}
	if at := p.anchor.Current(); at.Root > 0 {
		return fmt.Errorf("%s has root %d, %s: %w", anchorPath(cfg), at.Root, at.Key, anchor.ErrThere)
	}
	if err := refuseUsedToken(ctx, p); err != nil {
		return err
	}
	if p.store == nil { // only now: until here init has left nothing that a restore would refuse
		if err := p.openStore(ctx, cfg.Store.Path); err != nil {
			return err
		}
	}
	now := time.Now().UTC()
	trust, err := keylife.Ceremony(ctx, p.backed(), domain, now)
	if err != nil {
		return fmt.Errorf("key ceremony: %w", err)
	}
	trust.Policy = store.Policy{Version: 1, Document: policy.Default(), ActivatedAt: now}
	for i := range trust.Keys {
		trust.Keys[i].Tokens = []string{cfg.HSM.TokenLabel}
	}
	if err := anchorFirst(p, cfg, trust); err != nil {
		return err
	}
	if err := keyuse.SealKeys(ctx, p.token, trust.Keys, p.seals); err != nil {
		return err
	}
	if err := p.store.Unseal(ctx, p.seals, p.anchor); err != nil {
		return err
	}
	policyHash := sha256.Sum256(trust.Policy.Document)
	rec := audit.Act(ctx, audit.KindCeremony, "trust/"+domain, map[string]any{
		"event": "ceremony", "keys": len(trust.Keys), "policy": trust.Policy.Version, "policy_sha256": policyHash[:],
	})
	if err := p.store.AddTrust(ctx, trust, rec); err != nil {
		return fmt.Errorf("storing keys and trust: %w", err)
	}
	p.log.Info("initialized", "trust_domain", domain, "keys", len(trust.Keys))
	if p.escrow == nil {
		p.log.Warn("there is no way back: these keys have no sealed copies and are lost with their token",
			"hint", "countersignctl key custodians init, backup.recipient in config.toml, and init on an empty token")
	}
	return nil
}

// founded reports whether the store has the keys and settings of an appliance. Without a store it has none.
func (p *parts) founded(ctx context.Context) (bool, error) {
	if p.store == nil {
		return false, nil
	}
	claims, err := p.store.Claims(ctx)
	if err != nil {
		return false, fmt.Errorf("reading the store: %w", err)
	}
	return claims.Founded || len(claims.Settings) > 0, nil
}

// anchorFirst creates the anchor before the store has the root, so that something vouches
// for the root of every store.
func anchorFirst(p *parts, cfg *config.Appliance, trust store.Trust) error {
	settings, err := keyring.ParseSettings(trust.Settings)
	if err != nil {
		return err
	}
	first, err := chain.Anchor(settings)
	if err != nil {
		return err
	}
	p.anchor, err = anchor.Create(anchorPath(cfg), first)
	return err
}

// errTokenUsed means that the token holds keys that no store has.
var errTokenUsed = errors.New("the token holds keys already, and the store has none of them")

// refuseUsedToken refuses a token with keys, and one with an object that has the name of a key, of any program.
func refuseUsedToken(ctx context.Context, p *parts) error {
	keys, err := p.token.Keys(ctx)
	if err != nil {
		return fmt.Errorf("looking at the token: %w", err)
	}
	keys = slices.DeleteFunc(keys, func(k hsm.Key) bool { return !k.Versioned() }) // another program's
	if len(keys) > 0 {
		return fmt.Errorf("%w: %d keys, %s first", errTokenUsed, len(keys), keys[0].Label)
	}
	objects, err := p.token.Objects(ctx)
	if err != nil && !errors.Is(err, hsm.ErrUnsupported) {
		return fmt.Errorf("looking at the token: %w", err)
	}
	for _, o := range objects {
		if name, _, versioned := strings.Cut(o.Label, "@"); versioned && slices.Contains(keyring.Names, name) {
			return fmt.Errorf("%w: %s first", errTokenUsed, o.Label)
		}
	}
	return nil
}
