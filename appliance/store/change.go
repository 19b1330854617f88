package store

import (
	"context"
	"time"

	"countersign/protocol"
)

// Admins are the administrators whose signatures count in a quorum.
type Admins interface {
	// ListAdmins lists all administrators by name.
	ListAdmins(ctx context.Context) ([]Admin, error)
	// AddAdmin stores a new one; ErrExists if the name or the key was ever
	// another's: who was revoked keeps both.
	AddAdmin(ctx context.Context, a Admin, rec Record) error
	// UpdateAdmin writes status, version and change of a over the row whose version
	// is a.Version-1, or returns ErrConflict; ErrNotFound if there is no such id.
	UpdateAdmin(ctx context.Context, a Admin, rec Record) error
}

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

// Changes are the change requests that administrators countersign. A row is never
// deleted, so that a request is executed once and never again.
type Changes interface {
	// AddChange stores a new request with the signatures that c has; ErrExists if
	// its id was ever used.
	AddChange(ctx context.Context, c Change, rec Record) error
	// Change finds one by its id, or ErrNotFound.
	Change(ctx context.Context, id [8]byte) (Change, error)
	// ListChanges lists the newest first, at most limit.
	ListChanges(ctx context.Context, limit int) ([]Change, error)
	// SignChange adds a signature to a request that is open: ErrConflict if it is
	// not, ErrExists if that signer has signed it, ErrNotFound if there is none.
	SignChange(ctx context.Context, id [8]byte, s ChangeSignature, rec Record) error
	// ResignChange writes s over what the same signer signed of an open request:
	// ErrConflict if it is not open, ErrNotFound if he has not signed it.
	ResignChange(ctx context.Context, id [8]byte, s ChangeSignature, rec Record) error
	// EndChange moves a request from e.From to e.To: ErrConflict if it is not
	// there, ErrNotFound if there is none. From an end nothing leads on.
	EndChange(ctx context.Context, e ChangeEnd, rec Record) error
}

// ChangeState is where a change request stands.
type ChangeState string

// The states. Taken is between the last signature and the end: it is spent, and what it
// asks for may have been done.
const (
	ChangeOpen      ChangeState = "open"
	ChangeTaken     ChangeState = "taken"
	ChangeExecuted  ChangeState = "executed"
	ChangeFailed    ChangeState = "failed"
	ChangeExpired   ChangeState = "expired"
	ChangeWithdrawn ChangeState = "withdrawn"
)

// Ended reports whether nothing leads on from the state.
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

// ChangeSignature is that of one administrator, or the word of the admin socket.
type ChangeSignature struct {
	Signer    [8]byte // zero: the admin socket
	Signature []byte  // COSE_Sign1; nil of the admin socket
	At        time.Time
}

// ChangeEnd is a step towards the end of a request.
type ChangeEnd struct {
	ID       [8]byte
	From, To ChangeState
	Reason   string
	Required int
	Signed   []string
	At       time.Time
}
