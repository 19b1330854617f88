package trust

import (
	"encoding/json"

	"countersign/protocol"
	"countersign/protocol/internal/strict"
)

type trustJSON struct {
	RootKey      protocol.Base64   `json:"root_key"`
	RootNumber   uint64            `json:"root_number"`
	NextRootHash protocol.Base64   `json:"next_root_hash"`
	Adopted      []protocol.Base64 `json:"adopted"`
	Earlier      []protocol.Base64 `json:"earlier"`
	Later        []protocol.Base64 `json:"later"`
	Shown        *shownJSON        `json:"shown,omitempty"`
	EarlierRoots []earlierRootJSON `json:"earlier_roots,omitempty"`
}

type earlierRootJSON struct {
	Number    uint64            `json:"number"`
	Key       protocol.Base64   `json:"key"`
	Decisions []protocol.Base64 `json:"decisions"`
	GivenUp   uint64            `json:"given_up,omitempty"`
}

type shownJSON struct {
	Time   uint64         `json:"time"`
	Epochs map[Use]uint64 `json:"epochs,omitempty"`
}

// MarshalJSON returns the stored form: the pinned root and the certificates as received.
func (t State) MarshalJSON() ([]byte, error) {
	w := trustJSON{RootKey: t.Root[:], RootNumber: t.RootNumber, NextRootHash: t.NextRootHash[:], Adopted: []protocol.Base64{}}
	for use := UseKEM; use <= UseClientCA; use++ {
		if k, ok := t.Keys[use]; ok {
			w.Adopted = append(w.Adopted, k.Raw)
		}
	}
	w.Earlier, w.Later = rawOf(t.Earlier), rawOf(t.Later)
	if t.ShownTime != 0 {
		w.Shown = &shownJSON{t.ShownTime, t.ShownEpochs}
	}
	for _, e := range t.EarlierRoots {
		w.EarlierRoots = append(w.EarlierRoots, earlierRootJSON{e.Number, e.Key[:], rawOf(e.Decisions), e.GivenUp})
	}
	return json.Marshal(w)
}

func rawOf(keys []Key) []protocol.Base64 {
	raw := []protocol.Base64{}
	for _, k := range keys {
		raw = append(raw, k.Raw)
	}
	return raw
}

// UnmarshalJSON decodes the stored form and verifies every certificate again under the pinned root.
// Errors are CodeFormat or CodeCertificate.
func (t *State) UnmarshalJSON(b []byte) (err error) {
	var w trustJSON
	if err := strict.JSON(b, &w); err != nil {
		return err
	}
	u := State{RootNumber: w.RootNumber}
	if u.Root, err = protocol.ParsePublicKey(w.RootKey); err != nil {
		return err
	}
	if err := strict.Fixed(u.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return err
	}
	if w.Shown != nil {
		u.ShownTime, u.ShownEpochs = w.Shown.Time, w.Shown.Epochs
	}
	if err := u.load(w); err != nil {
		return err
	}
	*t = u
	return nil
}

func (t *State) load(w trustJSON) error {
	adopted, err := verified(w.Adopted, t.Root)
	if err != nil {
		return err
	}
	for _, k := range adopted {
		if _, ok := t.Keys[k.Use]; ok {
			return protocol.CodeFormat.Errorf("two adopted keys of use %v", k.Use)
		}
		if t.Keys == nil {
			t.Keys = map[Use]Key{}
		}
		t.Keys[k.Use] = k
	}
	if t.Earlier, err = verified(w.Earlier, t.Root); err != nil {
		return err
	}
	if t.Later, err = verified(w.Later, t.Root); err != nil {
		return err
	}
	for _, e := range w.EarlierRoots {
		root := EarlierRoot{Number: e.Number, GivenUp: e.GivenUp}
		if root.Key, err = protocol.ParsePublicKey(e.Key); err != nil {
			return err
		}
		if root.Decisions, err = verified(e.Decisions, root.Key); err != nil {
			return err
		}
		t.EarlierRoots = append(t.EarlierRoots, root)
	}
	return nil
}

func verified(certs []protocol.Base64, root protocol.PublicKey) (keys []Key, err error) {
	for _, b := range certs {
		k, err := VerifyKeyCert(b, root)
		if err != nil {
			return nil, err
		}
		keys = append(keys, Key{k, b})
	}
	return keys, nil
}
