package protocol

import (
	"encoding/json"
	"fmt"
)

// TrustDocument is the answer of GET /v1/trust, PROTOCOL.md §5. As JSON its
// members are base64url without padding:
//
//	{"root_key", "next_root_hash", "root_certs": [RootCert(1…current)], "key_certs": []}
//
// Nobody believes it before [TrustDocument.Resolve].
type TrustDocument struct {
	RootKey      PublicKey
	NextRootHash [32]byte
	RootCerts    [][]byte
	KeyCerts     [][]byte
}

// Resolve finds the root of an activation code's hash and follows the chain from
// it to the current root: CodeCertificate where it does not lead there. KeyCerts that
// are not acceptable are left out, those of later epochs kept for [Trust.Adopt].
// now is Unix seconds.
func (d TrustDocument) Resolve(hash RootHash, now uint64) (Trust, error) {
	for i, b := range d.RootCerts {
		first, err := VerifyRootCert(b)
		if err != nil {
			return Trust{}, err
		}
		if first.Key.RootHash() == hash {
			return d.resolveFrom(first, d.RootCerts[i+1:], now)
		}
	}
	return Trust{}, certificateError("no root certificate has the hash of the activation code")
}

func (d TrustDocument) resolveFrom(last RootCert, later [][]byte, now uint64) (Trust, error) {
	if len(later) != 0 {
		var err error
		if last, err = FollowRoots(last.Number, last.NextHash, later); err != nil {
			return Trust{}, err
		}
	}
	if last.Key != d.RootKey || last.NextHash != d.NextRootHash {
		return Trust{}, certificateError("root certificates lead to root %d, which is not the document's root_key", last.Number)
	}
	t := Trust{Root: last.Key, RootNumber: last.Number, NextRootHash: last.NextHash}
	return t.withKeyCerts(d.KeyCerts, now), nil
}

type trustDocumentJSON struct {
	RootKey      Base64   `json:"root_key"`
	NextRootHash Base64   `json:"next_root_hash"`
	RootCerts    []Base64 `json:"root_certs"`
	KeyCerts     []Base64 `json:"key_certs"`
}

// MarshalJSON writes the document as on the wire.
func (d TrustDocument) MarshalJSON() ([]byte, error) {
	return json.Marshal(trustDocumentJSON{d.RootKey[:], d.NextRootHash[:], toBase64(d.RootCerts), toBase64(d.KeyCerts)})
}

// UnmarshalJSON reads the document strictly: see [ParseTrustDocument].
func (d *TrustDocument) UnmarshalJSON(b []byte) (err error) {
	*d, err = ParseTrustDocument(b)
	return err
}

// ParseTrustDocument reads the JSON of GET /v1/trust: CodeFormat on unknown or
// duplicate members, padding, and whatever is missing.
func ParseTrustDocument(b []byte) (d TrustDocument, err error) {
	var w trustDocumentJSON
	if err := strictJSON(b, &w); err != nil {
		return d, err
	}
	if d.RootKey, err = ParsePublicKey(w.RootKey); err != nil {
		return d, fmt.Errorf("root_key: %w", err)
	}
	if err := fixed(d.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return d, err
	}
	d.RootCerts, d.KeyCerts = fromBase64(w.RootCerts), fromBase64(w.KeyCerts)
	return d, nil
}

type trustJSON struct {
	RootKey      Base64   `json:"root_key"`
	RootNumber   uint64   `json:"root_number"`
	NextRootHash Base64   `json:"next_root_hash"`
	Adopted      []Base64 `json:"adopted"`
	Earlier      []Base64 `json:"earlier"`
	Later        []Base64 `json:"later"`
}

// MarshalJSON writes what is stored of a Trust: the pinned root and the
// certificates as received.
func (t Trust) MarshalJSON() ([]byte, error) {
	w := trustJSON{RootKey: t.Root[:], RootNumber: t.RootNumber, NextRootHash: t.NextRootHash[:], Adopted: []Base64{}}
	for use := UseKEM; use <= UseClientCA; use++ {
		if k, ok := t.Keys[use]; ok {
			w.Adopted = append(w.Adopted, k.Raw)
		}
	}
	w.Earlier, w.Later = rawOf(t.Earlier), rawOf(t.Later)
	return json.Marshal(w)
}

func rawOf(keys []TrustedKey) []Base64 {
	raw := []Base64{}
	for _, k := range keys {
		raw = append(raw, k.Raw)
	}
	return raw
}

// UnmarshalJSON reads what MarshalJSON wrote and verifies every certificate
// again under the pinned root: CodeFormat or CodeCertificate.
func (t *Trust) UnmarshalJSON(b []byte) (err error) {
	var w trustJSON
	if err := strictJSON(b, &w); err != nil {
		return err
	}
	u := Trust{RootNumber: w.RootNumber}
	if u.Root, err = ParsePublicKey(w.RootKey); err != nil {
		return err
	}
	if err := fixed(u.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return err
	}
	if err := u.load(w); err != nil {
		return err
	}
	*t = u
	return nil
}

func (t *Trust) load(w trustJSON) error {
	adopted, err := t.verified(w.Adopted)
	if err != nil {
		return err
	}
	for _, k := range adopted {
		if _, ok := t.Keys[k.Use]; ok {
			return formatError("two adopted keys of use %v", k.Use)
		}
		if t.Keys == nil {
			t.Keys = map[Use]TrustedKey{}
		}
		t.Keys[k.Use] = k
	}
	if t.Earlier, err = t.verified(w.Earlier); err != nil {
		return err
	}
	t.Later, err = t.verified(w.Later)
	return err
}

func (t *Trust) verified(certs []Base64) (keys []TrustedKey, err error) {
	for _, b := range certs {
		k, err := VerifyKeyCert(b, t.Root)
		if err != nil {
			return nil, err
		}
		keys = append(keys, TrustedKey{k, b})
	}
	return keys, nil
}
