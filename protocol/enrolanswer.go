package protocol

import (
	"encoding/json"
	"fmt"
)

// EnrolResponse is the answer of POST /v1/enrol, PROTOCOL.md §5, as JSON
//
//	{"client_id", "root_key", "next_root_hash", "key_certs": [], "client_cert",
//	 "floors": [{"service", "min_level"}]}
//
// with binary members in base64url without padding.
type EnrolResponse struct {
	Client       ClientID
	RootKey      PublicKey
	NextRootHash [32]byte
	KeyCerts     [][]byte
	ClientCert   []byte
	Floors       []Floor
}

// Floor is the least level of a service, for the client's own table.
type Floor struct {
	Service  Service `json:"service"`
	MinLevel Level   `json:"min_level"`
}

type enrolResponseJSON struct {
	ClientID     Base64   `json:"client_id"`
	RootKey      Base64   `json:"root_key"`
	NextRootHash Base64   `json:"next_root_hash"`
	KeyCerts     []Base64 `json:"key_certs"`
	ClientCert   Base64   `json:"client_cert"`
	Floors       []Floor  `json:"floors"`
}

// MarshalJSON writes the answer as on the wire.
func (r EnrolResponse) MarshalJSON() ([]byte, error) {
	floors := r.Floors
	if floors == nil {
		floors = []Floor{}
	}
	return json.Marshal(enrolResponseJSON{
		r.Client[:], r.RootKey[:], r.NextRootHash[:], toBase64(r.KeyCerts), r.ClientCert, floors,
	})
}

// ParseEnrolResponse reads an answer: CodeFormat. The client then holds it
// against the Trust it resolved before, see [EnrolResponse.Check].
func ParseEnrolResponse(body []byte) (r EnrolResponse, err error) {
	var w enrolResponseJSON
	if err := strictJSON(body, &w); err != nil {
		return r, err
	}
	if r.RootKey, err = ParsePublicKey(w.RootKey); err != nil {
		return r, fmt.Errorf("root_key: %w", err)
	}
	if err := fixed(r.Client[:], "client_id", w.ClientID); err != nil {
		return r, err
	}
	if err := fixed(r.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return r, err
	}
	for _, f := range w.Floors {
		if _, ok := f.MinLevel.Factors(); !ok {
			return r, formatError("floor of service %v is level %d", f.Service, f.MinLevel)
		}
	}
	r.KeyCerts, r.ClientCert, r.Floors = fromBase64(w.KeyCerts), w.ClientCert, w.Floors
	return r, nil
}

// Check says whether the answer fits the request and the trust the client
// resolved before it, and gives that trust with the answer's KeyCerts and the
// client certificate: CodeFormat or CodeCertificate. now is Unix seconds.
func (r EnrolResponse) Check(req EnrolRequest, trust Trust, now uint64) (Trust, ClientCert, error) {
	if r.RootKey != trust.Root || r.NextRootHash != trust.NextRootHash {
		return trust, ClientCert{}, certificateError("enrolment answered with another root")
	}
	trust = trust.withKeyCerts(r.KeyCerts, now)
	p, err := parseClientCert(r.ClientCert)
	if err != nil {
		return trust, ClientCert{}, err
	}
	keys := Keyring{Root: trust.Root, KeyCerts: trust.KeyCerts(UseClientCA), Now: now}
	if err := (checkedEvidence{cert: p}).checkCertificate(keys); err != nil {
		return trust, ClientCert{}, err
	}
	same := p.UVKey == nil && req.UVKey == nil || p.UVKey != nil && req.UVKey != nil && *p.UVKey == *req.UVKey
	if r.Client != req.ClientID() || p.SigningKey != req.SigningKey || !same {
		return trust, ClientCert{}, certificateError("enrolment answered for another client")
	}
	return trust, p.ClientCert, nil
}
