package store

import (
	"time"

	"countersign/protocol"
)

// Admin is one administrator.
type Admin struct {
	ID        [8]byte // SHA-256(Key)[0:8]
	Name      string
	Key       protocol.PublicKey
	Status    Status
	Version   uint64 // 1 at first, one more with each change
	CreatedAt time.Time
	Change    [8]byte // change request that stands behind it; zero: none
}

// ChangeState is the state of a change request.
type ChangeState string

// The states. A taken request is spent: it has its signatures, and its effect may have happened.
const (
	ChangeOpen      ChangeState = "open"
	ChangeTaken     ChangeState = "taken"
	ChangeExecuted  ChangeState = "executed"
	ChangeFailed    ChangeState = "failed"
	ChangeExpired   ChangeState = "expired"
	ChangeWithdrawn ChangeState = "withdrawn"
)

// Ended reports whether the state is final.
func (s ChangeState) Ended() bool { return s != ChangeOpen && s != ChangeTaken }

// Change is one change request.
type Change struct {
	ID         [8]byte // first 8 bytes of SHA-256(Document)
	Document   []byte  // det-CBOR, see appliance/change
	State      ChangeState
	Reason     string // why it failed; else ""
	CreatedAt  time.Time
	ExpiresAt  time.Time
	EndedAt    time.Time // zero while it is open or taken
	Signatures []ChangeSignature

	// As they were when it was taken, or ended: what the policy required, and who
	// had countersigned and counted. Zero while it is open.
	Required int
	Signed   []string
}

// ChangeSignature is the signature of one administrator, or the entry of the admin socket.
type ChangeSignature struct {
	Signer    [8]byte // zero: the admin socket
	Signature []byte  // COSE_Sign1; nil of the admin socket
	At        time.Time
}

// ChangeEnd moves a request towards its end.
type ChangeEnd struct {
	ID       [8]byte
	From, To ChangeState
	Reason   string
	Required int
	Signed   []string
	At       time.Time
}
