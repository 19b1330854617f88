package keyring_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func hours(n int) time.Time { return noon.Add(time.Duration(n) * time.Hour) }

// ring returns a ring with one root and these versions of mac.
func ring(versions ...store.Key) *keyring.Ring {
	var keys []keyring.Key
	for i, row := range versions {
		row.Name, row.Version = keyring.MAC, uint64(i+1)
		keys = append(keys, keyring.Key{Key: row, OnToken: true})
	}
	return (&keyring.Ring{}).With(keyring.Settings{RootCerts: [][]byte{{1}}}, keys...)
}

// TestState: the state of a version follows from its dates and from the version in use.
func TestState(t *testing.T) {
	for name, c := range map[string]struct {
		first    store.Key
		want     keyring.State
		accepted bool
	}{
		"not activated": {store.Key{}, keyring.PreActivation, true},
		"later":         {store.Key{ActivatedAt: hours(1)}, keyring.PreActivation, true},
		"last":          {store.Key{ActivatedAt: hours(-1)}, keyring.Active, true},
		"replaced":      {store.Key{ActivatedAt: hours(-3)}, keyring.Deactivated, true},
		"retired":       {store.Key{ActivatedAt: hours(-1), RetiredAt: hours(-1)}, keyring.Deactivated, false},
		"suspended":     {store.Key{ActivatedAt: hours(-1), SuspendedAt: hours(-1)}, keyring.Suspended, false},
		"compromised":   {store.Key{ActivatedAt: hours(-1), CompromisedAt: hours(-1), SuspendedAt: hours(-1)}, keyring.Compromised, false},
		"destroyed":     {store.Key{ActivatedAt: hours(-1), DestroyedAt: hours(-1), CompromisedAt: hours(-1)}, keyring.Destroyed, false},
	} {
		r := ring(c.first, store.Key{ActivatedAt: hours(-2)})
		k, _ := r.Find(keyring.MAC, 1)
		if got := r.State(k, noon); got != c.want || k.Accepted(noon) != c.accepted {
			t.Errorf("%s: %s, accepted %v; want %s, %v", name, got, k.Accepted(noon), c.want, c.accepted)
		}
		in, err := r.Current(keyring.MAC, noon)
		if err != nil || (in.Version == 1) != (c.want == keyring.Active) {
			t.Errorf("%s: version %d is in use: %v", name, in.Version, err)
		}
		accepted := r.Accepted(keyring.MAC, noon)
		if accepted[0].Version != in.Version || slices.ContainsFunc(accepted, func(k keyring.Key) bool { return k.Version == 1 }) != c.accepted {
			t.Errorf("%s: accepted %v", name, accepted)
		}
	}
	if _, err := ring(store.Key{}).Current(keyring.MAC, noon); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("none is in use: %v", err)
	}
}

// TestDates: an epoch is in use within its dates, and kem is accepted 30 days longer.
func TestDates(t *testing.T) {
	for _, name := range []string{keyring.KEM, keyring.Decision} {
		row := store.Key{
			Name: name, Version: 1, Cert: []byte{1}, Root: 1,
			ActivatedAt: hours(-1), NotBefore: hours(-1), NotAfter: hours(1),
		}
		r := (&keyring.Ring{}).With(keyring.Settings{RootCerts: [][]byte{{1}}}, keyring.Key{Key: row})
		for at, used := range map[int]bool{-2: false, -1: true, 1: true, 2: false} {
			if _, err := r.Current(name, hours(at)); (err == nil) != used {
				t.Errorf("%s at %+d h: %v", name, at, err)
			}
		}
		for at, accepted := range map[int]bool{1: true, 30 * 24: name == keyring.KEM, 30*24 + 2: false} {
			if got := len(r.Accepted(name, hours(at))) > 0; got != accepted {
				t.Errorf("%s at %+d h: accepted %v", name, at, got)
			}
		}
	}
}

// TestNew: each key of the registry must be on the token exactly once, with its usage.
func TestNew(t *testing.T) {
	id := hsm.KeyID{7}
	key := hsm.Key{ID: id, Usage: hsm.MACKey}
	other := hsm.Key{ID: id, Usage: hsm.WrapKey}
	for name, c := range map[string]struct {
		row     store.Key
		present []hsm.Key
		good    bool
		on      bool
	}{
		"present":               {store.Key{}, []hsm.Key{key}, true, true},
		"missing":               {store.Key{}, nil, false, false},
		"missing and retired":   {store.Key{RetiredAt: noon}, nil, true, false},
		"twice":                 {store.Key{}, []hsm.Key{key, key}, false, false},
		"another usage":         {store.Key{}, []hsm.Key{other}, false, false},
		"destroyed, left there": {store.Key{DestroyedAt: noon}, []hsm.Key{key}, true, true},
	} {
		c.row.Name, c.row.Version, c.row.ID = keyring.MAC, 1, id
		r, err := keyring.New([]keyring.Key{{Key: c.row}}, keyring.Settings{}, c.present)
		if c.good != (err == nil) || err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if k, _ := r.Find(keyring.MAC, 1); err == nil && k.OnToken != c.on {
			t.Errorf("%s: on the token %v", name, k.OnToken)
		}
	}
}
