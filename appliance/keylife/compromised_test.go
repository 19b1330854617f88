package keylife_test

import (
	"errors"
	"path/filepath"
	"testing"

	"countersign/appliance/anchor"
	"countersign/appliance/appliancetest"
	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/keyring/chain"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/protocol/derive"
)

// TestCompromisedMAC: a database under a compromised version of mac is not accepted as one under
// the next version, even if its rows say that both are the same key.
func TestCompromisedMAC(t *testing.T) {
	b := appliancetest.New(t)
	b.Step("rotate", "mac")
	b.Step("activate", "mac@2")
	claims, err := b.Store.(store.Sealing).Claims(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var one, two *store.Key
	for i := range claims.Keys {
		switch k := &claims.Keys[i]; {
		case k.Name == keyring.MAC && k.Version == 1:
			one = k
		case k.Name == keyring.MAC && k.Version == 2:
			two = k
		}
	}
	if one == nil || two == nil || two.ActivatedAt.IsZero() {
		t.Fatalf("%+v %+v", one, two)
	}
	leaked, err := b.Token.MAC(t.Context(), one.ID, derive.SealKeyInput())
	if err != nil {
		t.Fatal(err)
	}
	one.CompromisedAt = b.Clock.Now() // whether or not the row says so
	two.ID = one.ID
	path := filepath.Join(t.TempDir(), "forged.db")
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	seals := store.NewSeals(nil)
	seals.Add(2, leaked, false)
	seals.Use(2)
	trust := store.Trust{Keys: claims.Keys, Settings: claims.Settings, Policy: claims.Policy}
	rec := audit.NewRecord(audit.KindCeremony, "trust", nil)
	err = errors.Join(s.Unseal(t.Context(), seals, nil), s.AddTrust(t.Context(), trust, rec))
	for range 100 {
		err = errors.Join(err, s.ChangeKeys(t.Context(), store.KeyChange{MAC: 2}, rec))
	}
	mallory := store.Admin{ID: [8]byte{1}, Name: "mallory", Status: store.Active, Version: 1, CreatedAt: b.Clock.Now()}
	if err = errors.Join(err, s.AddAdmin(t.Context(), mallory, rec), s.Close()); err != nil {
		t.Fatal(err)
	}
	// The daemon starts on it, with the genuine token, anchor and root.
	if s, err = sqlite.Open(t.Context(), sqlite.Config{Path: path}); err != nil {
		t.Fatal(err)
	}
	settings, err := keyring.ParseSettings(claims.Settings)
	if err != nil {
		t.Fatal(err)
	}
	at, err := chain.Anchor(settings)
	if err != nil {
		t.Fatal(err)
	}
	at.Revision, at.MAC = 20, 2
	pins := keyuse.Pins{Anchor: anchor.InMemory(at), Root: b.Keyring.Root()}
	genuine := store.NewSeals(func(err error) { t.Log("alarm:", err) })
	if err := keyuse.Unseal(t.Context(), b.Token, s, genuine, pins); err != nil {
		t.Log(err)
		return
	}
	keys, err := keyuse.Load(t.Context(), b.Token, s, pins)
	if err == nil {
		err = errors.Join(keys.Keep(t.Context(), genuine), keylife.SelfTest(t.Context(), keys, b.Clock.Now()))
	}
	all, _ := s.ListAdmins(t.Context())
	if err == nil && len(all) == 1 {
		t.Errorf("a whole database that was sealed by mac@1 is taken as of mac@2, with administrator %s", all[0].Name)
	}
	t.Log(err)
}
