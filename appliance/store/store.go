// Package store is the appliance's durable state as a contract: clients, devices,
// invitations, spent serials with their decisions, limits, policies, the key
// registry and audit records. A driver (appliance/store/sqlite) keeps it;
// appliance/store/storetest is the contract as one suite.
//
// Every method that changes something is one transaction, durable (fsynced) when
// it returns nil, and carries the audit record of what it does: both or neither
// are stored. An error that wraps [ErrUnavailable] leaves the outcome unknown to
// the caller only if it came from the commit itself; asking again is safe, since
// every change is found again by its own key. A context that ends before the
// change was begun prevents it; one that ends later does not, and its error leaves
// the outcome unknown too. Only Try has no record: that of its attempt comes with
// the answer, through Wrong or Spend.
//
// Every record from which authority flows has a [Seal], which is verified where the
// record is used, within the transaction that uses it; what does not fit is an error that
// wraps [ErrForged]. Before the store is unsealed (see [Sealing]) there is nothing to
// verify by, and all but Append, Records, Tally, Copy and Close return [ErrSealed].
//
// Times come back in UTC and in whole microseconds, see [Stamp]. A byte slice, list
// or map without elements comes back as nil or empty.
package store

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"time"

	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// Sentinels.
var (
	// ErrNotFound: there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name, id or key is taken.
	ErrExists = errors.New("exists already")
	// ErrConflict: the row is no longer at the version that was read.
	ErrConflict = errors.New("changed by somebody else meanwhile")
	// ErrUsed: the invitation was used, or has expired.
	ErrUsed = errors.New("activation code used or expired")
	// ErrUnavailable: the store cannot be reached, is full or is closed.
	ErrUnavailable = errors.New("store unavailable")
)

// Store is the whole contract. All methods may be called concurrently.
type Store interface {
	// Clients: the enrolled phones.

	// Client finds a client by id, or ErrNotFound.
	Client(ctx context.Context, id protocol.ClientID) (Client, error)
	// ListClients lists all clients by name. One whose record does not fit its seal
	// has ID and Name only, and so no [Status] that allows anything.
	ListClients(ctx context.Context) ([]Client, error)
	// UpdateClient writes c over the row whose version is c.Version-1, or
	// returns ErrConflict; ErrNotFound if there is no such id, ErrExists if the
	// name is another's. CreatedAt and Highest are not written: only Spend
	// raises the latter.
	UpdateClient(ctx context.Context, c Client, rec audit.Record) error

	// Devices: the enrolled authorization devices.

	// Device finds a device by id, or ErrNotFound.
	Device(ctx context.Context, id protocol.DeviceID) (Device, error)
	// ListDevices works as ListClients.
	ListDevices(ctx context.Context) ([]Device, error)
	// UpdateDevice works as UpdateClient.
	UpdateDevice(ctx context.Context, d Device, rec audit.Record) error

	// Invitations: activation codes, of which the store keeps the SHA-256 only.

	// Invite stores a new invitation; ErrExists if the name is taken by an
	// enrolled party of that kind or by an invitation that is still open. With
	// Replace such an invitation expires at i.CreatedAt and a revoked party does
	// not count; any other still is ErrExists.
	Invite(ctx context.Context, i Invitation, rec audit.Record) error
	// Invitation finds one by the SHA-256 of its code, used or not.
	Invitation(ctx context.Context, code [32]byte) (Invitation, error)
	// EnrolClient uses the invitation up and stores the client, once:
	// ErrUsed if the invitation is used or expired (at u.At), ErrExists if the
	// client id or name is taken, ErrNotFound if there is no such invitation of
	// this kind. An error leaves the invitation as it was. The name of a revoked
	// client is free: that client is called [Client.RetiredName] from then on.
	EnrolClient(ctx context.Context, u Use, c Client, rec audit.Record) error
	// EnrolDevice works as EnrolClient; the device's 4-byte handle is unique too.
	// A revoked device with this id and SPIFFE ID becomes d: its row, to which
	// its decisions refer, gets the Version that follows on its own, whatever
	// d.Version is.
	EnrolDevice(ctx context.Context, u Use, d Device, rec audit.Record) error

	// Decisions: spent serials and their outcomes.

	// Answered finds the stored outcome of exactly this countersignature, or
	// ErrNotFound. An attempt that was answered with "retry" has one too: its
	// Result is [protocol.ResultRetry], with TriesLeft.
	Answered(ctx context.Context, key AnswerKey) (Outcome, error)
	// Spend is the one durable commit of a countersignature: in one
	// transaction it reads the rows of a [View], lets [Spend.Conclude] decide
	// and stores what that says. Repeating it with the same AnswerKey returns
	// the stored outcome again with Replayed set. ErrNotFound if there is no
	// such client or device, ErrExists if an approved transaction has the
	// decision's transaction id. A [Spend.Approves] or [Spend.Asks] that names
	// nothing is no error but an outcome.
	Spend(ctx context.Context, s Spend) (Outcome, error)
	// Report stores what the device did. The first report wins: a later one
	// changes nothing and returns nil. Not performed gives the limits back.
	// ErrNotFound if this device has no such approved transaction.
	Report(ctx context.Context, r Report, rec audit.Record) error

	// Password attempts: each is counted before the token checks it.

	// Try counts a password attempt, durably, before the token checks it. In one
	// transaction it reads what [Attempt.Conclude] needs, and stores what that
	// says. An attempt that was begun with the same bytes is not counted again:
	// Tried.Repeat, and Tried.Answered where its answer was stored. ErrNotFound
	// if there is no such client.
	Try(ctx context.Context, a Attempt) (Tried, error)
	// Wrong stores that a begun attempt was answered with "retry" and how many
	// tries that left; a repeat of its M3 is answered the same. Storing it
	// twice is no error and changes nothing. ErrNotFound if no such attempt
	// waits for its answer: it was not begun, or its serial was spent by it.
	Wrong(ctx context.Context, key AnswerKey, triesLeft uint64, rec audit.Record) error
	// Guard reads the state of a client's password guard; ErrNotFound if there
	// is no such client.
	Guard(ctx context.Context, id protocol.ClientID) (Guard, error)
	// Unlock sets a client's guard back to zero, as nothing else does but a
	// Spend with Right; ErrNotFound if there is no such client.
	Unlock(ctx context.Context, id protocol.ClientID, rec audit.Record) error

	// Policies: the versions of policy.toml, the newest of which is active.

	// ActivePolicy is the newest, or ErrNotFound in an empty store.
	ActivePolicy(ctx context.Context) (Policy, error)
	// PolicyAt is one that is or was active, or ErrNotFound.
	PolicyAt(ctx context.Context, version uint64) (Policy, error)
	// AddPolicy makes p the active policy; p.Version must be the active
	// version + 1 (1 in an empty store), else ErrConflict.
	AddPolicy(ctx context.Context, p Policy, rec audit.Record) error

	// Administrators, whose signatures count in a quorum.

	// ListAdmins lists all administrators by name.
	ListAdmins(ctx context.Context) ([]Admin, error)
	// AddAdmin stores a new one; ErrExists if the name or the key was ever
	// another's: who was revoked keeps both.
	AddAdmin(ctx context.Context, a Admin, rec audit.Record) error
	// UpdateAdmin writes status, version and change of a over the row whose version
	// is a.Version-1, or returns ErrConflict; ErrNotFound if there is no such id.
	UpdateAdmin(ctx context.Context, a Admin, rec audit.Record) error

	// Change requests, which administrators countersign. A row is never deleted, so that a request is
	// executed once.

	// AddChange stores a new request with the signatures that c has; ErrExists if
	// its id was ever used.
	AddChange(ctx context.Context, c Change, rec audit.Record) error
	// Change finds one by its id, or ErrNotFound.
	Change(ctx context.Context, id [8]byte) (Change, error)
	// ListChanges lists the newest first, at most limit.
	ListChanges(ctx context.Context, limit int) ([]Change, error)
	// SignChange adds a signature to a request that is open: ErrConflict if it is
	// not, ErrExists if that signer has signed it, ErrNotFound if there is none.
	SignChange(ctx context.Context, id [8]byte, s ChangeSignature, rec audit.Record) error
	// ResignChange writes s over what the same signer signed of an open request:
	// ErrConflict if it is not open, ErrNotFound if he has not signed it.
	ResignChange(ctx context.Context, id [8]byte, s ChangeSignature, rec audit.Record) error
	// EndChange moves a request from e.From to e.To: ErrConflict if it is not
	// there, ErrNotFound if there is none. From an end nothing leads on.
	EndChange(ctx context.Context, e ChangeEnd, rec audit.Record) error

	// Copies, and recovery from one after a disaster.

	// Copy is the store as of one moment, made while it serves, one at a time
	// (another is ErrUnavailable). The file was checked, has no name any more and is
	// the caller's to close.
	Copy(ctx context.Context) (Copy, error)
	// Recover stores in one transaction what else is known of the keys, and the policy
	// if it is newer than the active one. What may have come to its end after the copy
	// was made ends: a decision that was pending is denied as expired, and an
	// invitation that was open has expired since it was made, for the host's clock may
	// be ahead. Errors are those of ChangeKeys.
	Recover(ctx context.Context, r Recovered, rec audit.Record) error

	// The audit log.

	// Append stores a record that belongs to no other change.
	Append(ctx context.Context, rec audit.Record) error
	// Records lists up to limit records with a sequence number above after.
	Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error)
	// Tally counts what is stored.
	Tally(ctx context.Context) (Tally, error)

	Keys
	Sealing

	// Fatal delivers at most one error: the store does not know what is on the disk, because an
	// fsync failed or the file is corrupt. Every later call returns ErrUnavailable, and the process
	// has to exit (status 74). Opening the store again afterwards is safe.
	Fatal() <-chan error
	// Close makes everything durable that has begun. Every later call returns ErrUnavailable, except
	// another Close.
	Close() error
}

// Keys is the registry of what the token holds, and the trust anchors.
type Keys interface {
	// ListKeys lists all keys by name and version.
	ListKeys(ctx context.Context) ([]Key, error)
	// AddTrust stores the result of a ceremony in one transaction, with the head on
	// which everything hangs from then on: keys, settings (trust domain, root
	// certificates) and the first policy. ErrExists if there was one before. Of a
	// store without a head everything else but Append is ErrNotFound or empty.
	AddTrust(ctx context.Context, t Trust, rec audit.Record) error
	// ChangeKeys stores one step of a key's life in one transaction: new rows
	// (ErrExists if the version was ever used), rows written over that whose
	// revision is Revision-1 (else ErrConflict; ErrNotFound if there is none),
	// and settings written over what was there. Name, version, id, public key and
	// sealed copy of a row are never written again, but for the copy of a key that
	// is destroyed, which is erased. With c.MAC new seals are of that version of mac
	// from this one on; it never goes back.
	ChangeKeys(ctx context.Context, c KeyChange, rec audit.Record) error
	// Settings are the named values that AddTrust and ChangeKeys stored.
	Settings(ctx context.Context) (map[string][]byte, error)
}

// Copy is a store in a file.
type Copy struct {
	*os.File
	Point Point
	Size  int64 // bytes
}

// Point is a moment of a store: that of its newest audit record.
type Point struct {
	Sequence uint64 // 0: there is none
	At       time.Time
	Leaf     [32]byte // of that record
}

// Recovered is what a store gets when it comes back.
type Recovered struct {
	KeyChange
	Policy   Policy // Version 0: none
	At       time.Time
	Revision uint64 // the head's is above it from then on, and above At in microseconds
}

// Sealing is of the seals as a whole.
type Sealing interface {
	// Claims returns what the store says, which nothing has verified: where to look
	// for the keys that verify it, and what a backup is held against.
	Claims(ctx context.Context) (Claims, error)
	// Unseal verifies the head, the schema and all that hangs on the head, and lets the
	// store serve from then on. It takes the version in force from the head. The head
	// may not be older than the anchor says, which follows it from then on; nil is for
	// none. An error wraps [ErrForged] or [ErrUnavailable].
	Unseal(ctx context.Context, s *Seals, a Anchor) error
	// Reseal brings records in force that are under an earlier version of mac to the
	// one in force, each after it was verified: at most so many after a cursor, which
	// is zero at first. Its record is stored where any was brought. done says that
	// there are no more. What does not fit stays as it is, and is an alarm.
	Reseal(ctx context.Context, after Cursor, most int, rec func(n int) audit.Record) (next Cursor, n int, done bool, err error)
	// Under counts the records in force, and those of them that are under a version
	// of mac. Of an earlier version than the one in force the count is zero unless one
	// of them fits its seal.
	Under(ctx context.Context, version uint64) (total, under uint64, err error)
	// Verify reads all records in force, and the schema, and returns how many there
	// are and what does not fit.
	Verify(ctx context.Context) (records uint64, forged []error, err error)
}

// Claims is what a store says before it is unsealed.
type Claims struct {
	Founded  bool // it has a head
	Keys     []Key
	Settings map[string][]byte
	Policy   Policy // the newest; Version 0: none
}

// Cursor is a place among the records that Reseal works through.
type Cursor struct {
	Table int
	Ref   int64
}

// Status of a client or device.
type Status uint8

// The states. The zero value is none of them, so a forgotten field denies.
const (
	Active Status = iota + 1
	Suspended
	Revoked
)

var statusNames = [...]string{"invalid", "active", "suspended", "revoked"}

func (s Status) String() string {
	if int(s) >= len(statusNames) {
		return statusNames[0]
	}
	return statusNames[s]
}

// Client is one enrolled phone.
type Client struct {
	ID         protocol.ClientID
	Name       string
	SigningKey protocol.PublicKey
	UVKey      *protocol.PublicKey
	Verifier   []byte // wrapped password verifier, 40 bytes, or nil
	Status     Status
	Roles      []string
	Version    uint64 // 1 at enrolment, one more with each change
	Cert       []byte // its client certificate
	CreatedAt  time.Time
	Highest    int64 // highest spent counter, -1 when none: of its [Restraint]
}

// RetiredName is what a revoked client is called once its name is another's: NAME~
// and the first 8 hexadecimal digits of its id. No party is invited as that.
func (c Client) RetiredName() string { return retired(c.Name, c.ID[:]) }

// Device is one enrolled authorization device.
type Device struct {
	ID        protocol.DeviceID
	Name      string // last part of its SPIFFE ID
	SPIFFEID  string
	Display   string // what the phone shows, at most 24 bytes (P2.6)
	Floor     protocol.Level
	Status    Status
	Version   uint64
	CreatedAt time.Time // of its last enrolment
}

// RetiredName works as that of [Client].
func (d Device) RetiredName() string { return retired(d.Name, d.ID[:]) }

func retired(name string, id []byte) string { return name + "~" + hex.EncodeToString(id[:4]) }

// Kind of an invited party.
type Kind string

// The kinds.
const (
	KindClient Kind = "client"
	KindDevice Kind = "device"
)

// Invitation is an activation code that was given out.
type Invitation struct {
	Code      [32]byte // SHA-256 of the activation code
	Kind      Kind
	Name      string
	Display   string         // device only
	Roles     []string       // client only: what it is enrolled with
	Floor     protocol.Level // device only
	Replace   bool           // of Invite alone, not stored: in place of an open one or a revoked party
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    time.Time // zero while open
	Request   [32]byte  // SHA-256 of the request that used it
	Response  []byte    // what that request was answered
	Number    uint64    // given by the store, see [OpenSet]
	Change    [8]byte   // change request that stands behind it; zero: none
}

// Use is the act of using an invitation up.
type Use struct {
	Code     [32]byte
	At       time.Time
	Request  [32]byte
	Response []byte
}

// Report is a device's word on an approved transaction.
type Report struct {
	Device      protocol.DeviceID
	Transaction protocol.TransactionID
	Performed   bool
	At          time.Time
}

// Policy is one version of policy.toml.
type Policy struct {
	Version     uint64
	Document    []byte
	ActivatedAt time.Time
	Change      [8]byte // change request that stands behind it; zero: none
}

// Origin is how a key came onto its token. A key that was restored or imported
// has lost the attributes that would tell (CKA_LOCAL, CKA_ALWAYS_SENSITIVE,
// CKA_NEVER_EXTRACTABLE), so the registry remembers it.
type Origin string

// The origins; "" is of rows whose maker did not say.
const (
	Generated Origin = "generated" // on its token, to stay there
	Copied    Origin = "copied"    // generated on its first token, with sealed copies made at its birth
	Restored  Origin = "restored"
	Imported  Origin = "imported"
)

// Key is one key version in the registry, with the dates of its life, SP 800-57
// part 1 §7. A row is never deleted and its version never used again. A time is
// zero where that has not happened, or does not exist for the key.
type Key struct {
	Name      string // "kem", "decision", … PROTOCOL.md §2.1
	Version   uint64 // the epoch of a certified key
	ID        [20]byte
	Public    []byte // 33-byte point of a key pair, else nil
	NotBefore time.Time
	NotAfter  time.Time
	Cert      []byte // its KeyCert, of root its RootCert; nil where it has none
	CreatedAt time.Time

	Root     uint64   // number of the root that certified it, 0 where none did
	Origin   Origin   // how it came onto its tokens
	Tokens   []string // labels of the tokens that have it
	Revision uint64   // of this row: one more with each change

	ActivatedAt   time.Time // when it became, or is to become, the one in use
	RetiredAt     time.Time // nothing under it is accepted from then on
	SuspendedAt   time.Time // not used until it is resumed
	CompromisedAt time.Time // not trusted, which nothing undoes
	DestroyedAt   time.Time // no token has it any more

	// Sealed is the copy that was made with the key (hsm.Sealed), nil where there is
	// none; it goes when the key is destroyed. A pair of several rows has its copy in
	// the row of whose name it was made.
	Sealed    []byte
	SealedFor []byte // 33-byte point of the backup key that opens it
}

// KeyChange is one step of a key's life.
type KeyChange struct {
	Add      []Key
	Update   []Key // each with the Revision that follows on its row's
	Settings map[string][]byte
	MAC      uint64 // version of mac that new seals are of; 0: as before
}

// Trust is the result of a key ceremony.
type Trust struct {
	Keys     []Key
	Settings map[string][]byte
	Policy   Policy // Version 1
}

// Tally counts rows, for status and tests.
type Tally struct {
	Clients, Devices, Invitations, Decisions, Records, Keys uint64
}

// Anchor remembers outside of the store how far it has come, so that an older one is
// refused. Both figures never go back.
type Anchor interface {
	// Floor returns the newest mark that the host has seen; zero if it has seen none.
	Floor() Mark
	// Advance makes a mark durable.
	Advance(Mark) error
}

// Mark is what a host remembers of the newest head.
type Mark struct {
	Revision uint64
	MAC      uint64   // version of mac in force
	Head     [32]byte // SHA-256 of the head of this revision; zeros: not known
}

// Expire ends an invitation that was open in the copy, whatever the clocks of the two hosts say.
func (r Recovered) Expire(i Invitation) Invitation {
	for _, end := range []time.Time{Stamp(r.At), i.CreatedAt} {
		if end.Before(i.ExpiresAt) {
			i.ExpiresAt = end
		}
	}
	return i
}

// Deny returns the end of a decision that waited for a second approver in the copy.
func (r Recovered) Deny() Final {
	return Final{Result: protocol.ResultDenied, Reason: protocol.CodeExpired, At: Stamp(r.At)}
}
