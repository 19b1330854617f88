package admin

import "time"

// Every verb that may take a quorum has ?life_s=SECONDS: how long administrators may
// countersign, at most 7 days; the default is 24 hours.

// Change is one change request: GET change, change/<id>, and the answer of POST
// change/<id>/{sign,withdraw}.
type Change struct {
	ID         string         `json:"id"`   // hex, 8 bytes: the beginning of the hash
	Hash       string         `json:"hash"` // hex, 32 bytes: what administrators countersign
	Kind       string         `json:"kind"`
	Parameters map[string]any `json:"parameters"` // byte strings in hex
	Document   []byte         `json:"document"`   // det-CBOR, base64
	State      string         `json:"state"`      // open, taken, executed, failed, expired, withdrawn; dry-run
	Reason     string         `json:"reason,omitempty"`
	By         string         `json:"by"`
	Required   int            `json:"required"` // administrators
	Signed     []string       `json:"signed"`   // who countersigned and counts
	More       int            `json:"more"`     // how many are missing
	Missing    []string       `json:"missing"`  // who could still countersign
	CreatedAt  time.Time      `json:"created_at"`
	ExpiresAt  time.Time      `json:"expires_at"`
	EndedAt    *time.Time     `json:"ended_at,omitempty"`
}

// Sign is the body of POST change/<id>/sign.
type Sign struct {
	// Signature is a COSE_Sign1 of the hash (appliance/change/CHANGE.md), base64.
	// Without one the admin socket countersigns.
	Signature []byte `json:"signature,omitempty"`
}

// Administrator is one of those who countersign: GET admin, admin/<name>, and the answer
// of POST admin/<name>/{add,suspend,resume,revoke}.
type Administrator struct {
	Name      string    `json:"name"`
	Signer    string    `json:"signer"`     // hex, 8 bytes: SHA-256(public key)[0:8]
	PublicKey string    `json:"public_key"` // hex, 33 bytes
	Status    string    `json:"status"`
	Version   uint64    `json:"version"`
	CreatedAt time.Time `json:"created_at"`
}

// Administer is the body of POST admin/<name>/{add,resume,revoke}. With DryRun the
// answer is a [Change].
type Administer struct {
	PublicKey string `json:"public_key,omitempty"` // add: hex, 33 or 65 bytes
	DryRun    bool   `json:"dry_run,omitempty"`
}

// Policy is the active policy: GET policy, and the answer of POST policy/apply.
type Policy struct {
	Version     uint64    `json:"version"`
	Hash        string    `json:"hash"` // hex, 32 bytes
	ActivatedAt time.Time `json:"activated_at"`
	Document    string    `json:"document"` // policy.toml
	Quorums     []Quorum  `json:"quorums"`
}

// Quorum is how many administrators a kind of change requires.
type Quorum struct {
	Kind     string `json:"kind"`
	Required int    `json:"required"`
	Able     int    `json:"able"` // who can countersign now
}

// Apply is the body of POST policy/apply. With DryRun the answer is a [Change].
type Apply struct {
	Document string `json:"document"`
	DryRun   bool   `json:"dry_run,omitempty"`
}
