package trust

import (
	"encoding/json"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/internal/strict"
)

// Document is the answer to GET /v1/trust, PROTOCOL.md §5. As JSON its members are base64url without
// padding:
//
//	{"root_key", "next_root_hash", "root_certs": [RootCert(1…current)], "key_certs": []}
//
// It is untrusted until [Document.Resolve].
type Document struct {
	RootKey      protocol.PublicKey
	NextRootHash [32]byte
	RootCerts    [][]byte
	KeyCerts     [][]byte
}

// Resolve finds the root with the hash of an activation code and follows the chain to the current
// root. It returns CodeCertificate if the chain does not lead there. It ignores unacceptable
// KeyCerts and keeps later epochs for [State.Adopt]. now is in Unix seconds.
func (d Document) Resolve(hash protocol.RootHash, now uint64) (State, error) {
	for i, b := range d.RootCerts {
		first, err := VerifyRootCert(b)
		if err != nil {
			return State{}, err
		}
		if first.Key.RootHash() == hash {
			return d.resolveFrom(first, d.RootCerts[i+1:], now)
		}
	}
	return State{}, protocol.CodeCertificate.Errorf("no root certificate has the hash of the activation code")
}

func (d Document) resolveFrom(last RootCert, later [][]byte, now uint64) (State, error) {
	if len(later) != 0 {
		var err error
		if last, err = FollowRoots(last.Number, last.NextHash, later); err != nil {
			return State{}, err
		}
	}
	if last.Key != d.RootKey || last.NextHash != d.NextRootHash {
		return State{}, protocol.CodeCertificate.Errorf("root certificates lead to root %d, which is not the document's root_key", last.Number)
	}
	t := State{Root: last.Key, RootNumber: last.Number, NextRootHash: last.NextHash}
	return t.WithKeyCerts(d.KeyCerts, now), nil
}

type trustDocumentJSON struct {
	RootKey      protocol.Base64   `json:"root_key"`
	NextRootHash protocol.Base64   `json:"next_root_hash"`
	RootCerts    []protocol.Base64 `json:"root_certs"`
	KeyCerts     []protocol.Base64 `json:"key_certs"`
}

// MarshalJSON returns the wire form.
func (d Document) MarshalJSON() ([]byte, error) {
	return json.Marshal(trustDocumentJSON{d.RootKey[:], d.NextRootHash[:], strict.ToBase64(d.RootCerts), strict.ToBase64(d.KeyCerts)})
}

// UnmarshalJSON decodes the document as [ParseDocument] does.
func (d *Document) UnmarshalJSON(b []byte) (err error) {
	*d, err = ParseDocument(b)
	return err
}

// ParseDocument decodes the JSON of GET /v1/trust. It returns CodeFormat for unknown, duplicate or
// missing members and for padding.
func ParseDocument(b []byte) (d Document, err error) {
	var w trustDocumentJSON
	if err := strict.JSON(b, &w); err != nil {
		return d, err
	}
	if d.RootKey, err = protocol.ParsePublicKey(w.RootKey); err != nil {
		return d, fmt.Errorf("root_key: %w", err)
	}
	if err := strict.Fixed(d.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return d, err
	}
	d.RootCerts, d.KeyCerts = strict.FromBase64(w.RootCerts), strict.FromBase64(w.KeyCerts)
	return d, nil
}
