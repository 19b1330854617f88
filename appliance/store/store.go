// Package store defines the durable state of the appliance: clients, devices, invitations, spent
// serials with their decisions, limits, policies, the key registry, administrators, change requests
// and audit records. A driver (appliance/store/sqlite) implements it; appliance/store/storetest
// tests a driver.
//
// Every method that changes something is one transaction. It is durable (fsynced) when the method
// returns nil, and includes the audit record of the change. An error that wraps [ErrUnavailable]
// leaves the outcome unknown only if it came from the commit itself. Asking again is safe, because
// every change is found by its own key. A context that ends before the change begins prevents it; a
// context that ends later does not, and its error leaves the outcome unknown too. Only Try has no
// record: Wrong or Spend stores it with the answer.
//
// Every record that grants authority has a [Seal]. A driver verifies it within the transaction that
// uses the record. A record that does not fit its seal is an error that wraps [ErrForged]. Until
// the store is unsealed (see [Sealing]), all methods except Append, Records, LastRecords, Tally, Claims, Unseal,
// Copy, Fatal and Close return [ErrSealed].
//
// Times come back in UTC and in whole microseconds, see [Stamp]. A byte slice, list or map without
// elements comes back as nil or empty.
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
	// ErrNotFound means that there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrExists means that the name, id or key is taken.
	ErrExists = errors.New("exists already")
	// ErrConflict means that the row is no longer at the version that was read.
	ErrConflict = errors.New("changed by another request meanwhile")
	// ErrUsed means that the invitation was used or has expired.
	ErrUsed = errors.New("activation code used or expired")
	// ErrUnavailable means that the store cannot be reached, is full or is closed.
	ErrUnavailable = errors.New("store unavailable")
	// ErrReadOnly means that the store was opened read-only, and stores no change.
	ErrReadOnly = errors.New("store is open for reading only")
)

// Store is the whole contract. All methods may be called concurrently.
type Store interface {
	// Clients: the enrolled phones.

	// Client finds a client by id, or ErrNotFound.
	Client(ctx context.Context, id protocol.ClientID) (Client, error)
	// ListClients lists all clients by name. A client whose record does not fit its seal has only
	// ID and Name, and so no [Status] that allows anything.
	ListClients(ctx context.Context) ([]Client, error)
	// UpdateClient writes c over the row of version c.Version-1. It returns ErrConflict if the row
	// has another version, ErrNotFound if there is no such id, and ErrExists if another client has
	// the name. It does not write CreatedAt and Highest: only Spend raises Highest.
	UpdateClient(ctx context.Context, c Client, rec audit.Record) error

	// Devices: the enrolled authorization devices.

	// Device finds a device by id, or ErrNotFound.
	Device(ctx context.Context, id protocol.DeviceID) (Device, error)
	// ListDevices works as ListClients.
	ListDevices(ctx context.Context) ([]Device, error)
	// UpdateDevice works as UpdateClient.
	UpdateDevice(ctx context.Context, d Device, rec audit.Record) error

	// Invitations: activation codes, of which the store keeps the SHA-256 only.

	// Invite stores a new invitation. It returns ErrExists if an enrolled party of that kind has
	// the name, or an open invitation is for it. With Replace, an open invitation for the name
	// expires at i.CreatedAt and a revoked party does not count.
	Invite(ctx context.Context, i Invitation, rec audit.Record) error
	// Invitation finds an invitation by the SHA-256 of its code, used or not.
	Invitation(ctx context.Context, code [32]byte) (Invitation, error)
	// OpenInvitations lists the invitations that can still be used at a time, by name.
	OpenInvitations(ctx context.Context, at time.Time) ([]Invitation, error)
	// Withdraw ends the open invitation of a party at a time. It returns ErrNotFound if none is open.
	Withdraw(ctx context.Context, kind Kind, name string, at time.Time, rec audit.Record) error
	// EnrolClient uses an invitation and stores the client. It returns ErrUsed if the invitation is
	// used or has expired at u.At, ErrExists if the client id or name is taken, and ErrNotFound if
	// there is no such invitation of this kind. An error leaves the invitation as it was. The name
	// of a revoked client is free: that client gets its [Client.RetiredName].
	EnrolClient(ctx context.Context, u Use, c Client, rec audit.Record) error
	// EnrolDevice works as EnrolClient; the 4-byte handle of the device is unique too. A revoked
	// device with this id and SPIFFE ID is replaced by d: its row, to which its decisions refer,
	// stays and gets the next Version, and d.Version is ignored.
	EnrolDevice(ctx context.Context, u Use, d Device, rec audit.Record) error

	// Decisions: spent serials and their outcomes.

	// Answered finds the stored outcome of exactly this countersignature, or returns ErrNotFound. A
	// password attempt that was answered with "retry" has an outcome too: its Result is
	// [protocol.ResultRetry], with TriesLeft.
	Answered(ctx context.Context, key AnswerKey) (Outcome, error)
	// Spend is the one durable commit of a countersignature: in one transaction it reads a [View],
	// and stores the [Conclusion] that [Spend.Conclude] makes of it. With the same AnswerKey it
	// returns the stored outcome again, with Replayed set. It returns ErrNotFound if there is no
	// such client or device, and ErrExists if an approved transaction has the transaction id. A
	// [Spend.Approves] or [Spend.Asks] that names nothing is an outcome, not an error.
	Spend(ctx context.Context, s Spend) (Outcome, error)
	// Used returns how far the windows of charges are used, in the same order, for a client whose
	// record it verifies. Amounts and limits of the charges do not matter. For an unknown client it
	// does the same work with another record, and returns zeros: the time does not show who exists.
	Used(ctx context.Context, id protocol.ClientID, charges []Charge) ([]Used, error)
	// Report stores the report of a device. The first report wins: a later one changes nothing and
	// returns nil. A transaction that was not performed gives its limits back. It returns
	// ErrNotFound if this device has no such approved transaction.
	Report(ctx context.Context, r Report, rec audit.Record) error
	// Performed returns what the device reported about the act of an approved serial, whose approval may have waited for
	// a second approver; nil if it has not reported, or the serial is not approved.
	Performed(ctx context.Context, id protocol.ClientID, serial protocol.Serial) (*bool, error)

	// Password attempts: each is counted before the token checks it.

	// Try counts a password attempt, durably, before the token checks it. In one transaction it
	// reads an [AttemptView] and stores the result of [Attempt.Conclude]. An attempt with the same
	// bytes is not counted again: see Tried.Repeat and Tried.Answered. It returns ErrNotFound if
	// there is no such client.
	Try(ctx context.Context, a Attempt) (Tried, error)
	// Wrong stores that an attempt was answered with "retry", and how many tries that left; a
	// repeat of its M3 gets the same answer. Storing it twice changes nothing. It returns
	// ErrNotFound if no such attempt waits for its answer: it was never begun, or it has spent its
	// serial.
	Wrong(ctx context.Context, key AnswerKey, triesLeft uint64, rec audit.Record) error
	// TakeBack removes an attempt that the token did not check, and what its Try counted. Only the
	// request whose Try began it calls it, and no other request may have checked it meanwhile. It
	// returns ErrNotFound, and changes nothing, if the attempt does not wait for its answer.
	TakeBack(ctx context.Context, key AnswerKey, tried Tried) error
	// Guard reads the password guard of a client, or returns ErrNotFound.
	Guard(ctx context.Context, id protocol.ClientID) (Guard, error)
	// Unlock resets the password guard of a client, as only a Spend with Right does otherwise. It
	// returns ErrNotFound if there is no such client.
	Unlock(ctx context.Context, id protocol.ClientID, rec audit.Record) error

	// Policies: the versions of policy.toml, the newest of which is active.

	// ActivePolicy returns the newest policy, or ErrNotFound in an empty store.
	ActivePolicy(ctx context.Context) (Policy, error)
	// PolicyAt returns a policy that is or was active, or ErrNotFound.
	PolicyAt(ctx context.Context, version uint64) (Policy, error)
	// AddPolicy makes p the active policy. It returns ErrConflict unless p.Version is the active
	// version + 1 (1 in an empty store).
	AddPolicy(ctx context.Context, p Policy, rec audit.Record) error

	// Administrators, whose signatures count in a quorum.

	// ListAdmins lists all administrators by name.
	ListAdmins(ctx context.Context) ([]Admin, error)
	// AddAdmin stores a new administrator. It returns ErrExists if any administrator ever had the
	// name or the key, revoked ones included.
	AddAdmin(ctx context.Context, a Admin, rec audit.Record) error
	// UpdateAdmin writes status, version and change of a over the row of version a.Version-1. It
	// returns ErrConflict if the row has another version, and ErrNotFound if there is no such id.
	UpdateAdmin(ctx context.Context, a Admin, rec audit.Record) error

	// Change requests, which administrators countersign. A row is never deleted, so that a request is
	// executed once.

	// AddChange stores a new request with the signatures in c. It returns ErrExists if its id was
	// ever used.
	AddChange(ctx context.Context, c Change, rec audit.Record) error
	// Change finds a request by its id, or returns ErrNotFound.
	Change(ctx context.Context, id [8]byte) (Change, error)
	// ChangesInForce lists the requests that are open or taken, the newest first. It is as fast with
	// many requests that have ended as with none.
	ChangesInForce(ctx context.Context) ([]Change, error)
	// ListChanges lists at most limit requests, the newest first.
	ListChanges(ctx context.Context, limit int) ([]Change, error)
	// SignChange adds a signature to an open request. It returns ErrConflict if the request is not
	// open, ErrExists if the signer has signed it already, and ErrNotFound if there is no such
	// request.
	SignChange(ctx context.Context, id [8]byte, s ChangeSignature, rec audit.Record) error
	// ResignChange replaces the signature of a signer on an open request. It returns ErrConflict if
	// the request is not open, and ErrNotFound if the signer has not signed it.
	ResignChange(ctx context.Context, id [8]byte, s ChangeSignature, rec audit.Record) error
	// EndChange moves a request from e.From to e.To. It returns ErrConflict if the request is not
	// at e.From, and ErrNotFound if there is no such request. A request that has ended does not
	// move again.
	EndChange(ctx context.Context, e ChangeEnd, rec audit.Record) error

	// Copies, and recovery from one after a disaster.

	// Copy returns a checked copy of the store as of one moment, made while the store serves. A
	// second copy at the same time is ErrUnavailable. The file has no name any more; the caller
	// closes it.
	Copy(ctx context.Context) (Copy, error)
	// Recover stores the newer state of the keys, and the policy if it is newer than the active
	// one, in one transaction. It ends everything that may have ended after the copy was made:
	// decisions that wait are denied as expired, and open invitations expire at their creation or
	// now, whichever is earlier, because the clock of this host may be ahead. It returns the errors
	// of ChangeKeys.
	Recover(ctx context.Context, r Recovered, rec audit.Record) error

	// The audit log.

	// Append stores a record that belongs to no other change.
	Append(ctx context.Context, rec audit.Record) error
	// Records lists up to limit records with a sequence number above after, the oldest first.
	Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error)
	// LastRecords lists up to limit records, the newest first. It is as fast with many records as with few.
	LastRecords(ctx context.Context, limit int) ([]audit.Record, error)
	// Pulse makes one durable write that means nothing, as every change does: it shows whether changes
	// can be stored. On a store that is open for reading only it returns ErrReadOnly if a change could be
	// written.
	Pulse(ctx context.Context, at time.Time) error
	// Tally counts the stored rows.
	Tally(ctx context.Context) (Tally, error)

	Keys
	Sealing

	// Fatal delivers at most one error: an fsync failed or the file is corrupt, so that the content
	// of the disk is unknown. Every later call returns ErrUnavailable, and the process has to exit
	// (status 74). Opening the store again afterwards is safe.
	Fatal() <-chan error
	// Close makes everything durable that has begun. Every later call returns ErrUnavailable, except
	// another Close.
	Close() error
}

// Keys is the registry of the keys on the token, and the trust anchors.
type Keys interface {
	// ListKeys lists all keys by name and version.
	ListKeys(ctx context.Context) ([]Key, error)
	// AddTrust stores the result of a key ceremony in one transaction: keys, settings (trust
	// domain, root certificates), the first policy, and the head. It returns ErrExists if the store
	// has a head. In a store without a head, all other methods except Append return ErrNotFound or
	// nothing.
	AddTrust(ctx context.Context, t Trust, rec audit.Record) error
	// ChangeKeys stores one step in the life of keys in one transaction: new rows (ErrExists if the
	// version was ever used), changed rows (ErrConflict unless the row is at Revision-1,
	// ErrNotFound if there is none) and settings. Name, version, id, public key and sealed copy of
	// a row never change, except that the copy of a destroyed key is erased. c.MAC sets the version
	// of mac of new seals from this change on; it never goes back.
	ChangeKeys(ctx context.Context, c KeyChange, rec audit.Record) error
	// Settings returns the named values that AddTrust and ChangeKeys stored.
	Settings(ctx context.Context) (map[string][]byte, error)
}

// Copy is a store in a file.
type Copy struct {
	*os.File
	Point Point
	Size  int64 // bytes
}

// Point is a moment of a store, named by its newest audit record.
type Point struct {
	Sequence uint64 // 0: there is none
	At       time.Time
	Leaf     [32]byte
}

// Recovered is the newer state that a restored store takes over.
type Recovered struct {
	KeyChange
	Policy   Policy // Version 0: none
	At       time.Time
	Revision uint64 // the head rises above it, and above At in microseconds
}

// Sealing verifies and renews the seals of all records.
type Sealing interface {
	// Claims returns unverified content of the store: where to look for the keys that verify it,
	// and the state to compare a backup with.
	Claims(ctx context.Context) (Claims, error)
	// Unseal verifies the head, the records that hang on it and the schema, and lets the store
	// serve. It takes the version of mac in force from the head. It refuses a head older than the
	// anchor; the anchor follows the head from then on. A nil anchor is none. An error wraps
	// [ErrForged] or [ErrUnavailable].
	Unseal(ctx context.Context, s *Seals, a Anchor) error
	// Upgrade lets the store write records in the form of this release, once it is unsealed. Programs
	// of an earlier release, which would misread them, refuse the store from then on. Until then
	// nothing is charged: Spend returns ErrUnavailable. Upgrade does nothing in a store that this release
	// made or upgraded.
	Upgrade(ctx context.Context, rec audit.Record) error
	// Schema returns the number of the store's schema, once it is unsealed, and the number to which Upgrade
	// brings it. They are equal if Upgrade does nothing.
	Schema() (stored, upgraded int, err error)
	// Reseal verifies records in force whose seals are of an earlier version of mac and seals them
	// under the version in force: at most so many after a cursor, which is zero at first. It stores
	// the record if it resealed any. done reports that none are left. A record that does not fit
	// stays as it is and raises the alarm.
	Reseal(ctx context.Context, after Cursor, most int, rec func(n int) audit.Record) (next Cursor, n int, done bool, err error)
	// Under counts the records in force, and how many of them have a seal of a version of mac. For
	// an earlier version than the one in force the count is zero unless at least one record fits
	// its seal.
	Under(ctx context.Context, version uint64) (total, under uint64, err error)
	// Verify reads all records in force and the schema. It returns the number of records, and an
	// error for everything that does not fit.
	Verify(ctx context.Context) (records uint64, forged []error, err error)
}

// Claims is unverified content of a store.
type Claims struct {
	Founded  bool // it has a head
	Keys     []Key
	Settings map[string][]byte
	Policy   Policy // the newest; Version 0: none
}

// Cursor is a position of Reseal.
type Cursor struct {
	Table int
	Ref   int64
}

// Status of a client or device.
type Status uint8

// The states. The zero value is invalid, so that a forgotten field denies.
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
	Verifier   []byte // wrapped password verifier, as Import of package hsm returned it, or nil
	Status     Status
	Roles      []string
	Version    uint64 // 1 at enrolment, one more with each change
	Cert       []byte // its client certificate
	CreatedAt  time.Time
	Highest    int64 // highest spent counter, -1 when none: of its [Restraint]
}

// RoleUV marks a client whose UV key counts as a factor because the policy accepted its attestation at
// enrolment. No policy and no invitation may name it, and it lets no client approve for another.
const RoleUV = "uv"

// RetiredName returns the name of a revoked client whose name another client has taken: NAME~ and
// the first 8 hexadecimal digits of its id. No party can be invited by such a name.
func (c Client) RetiredName() string { return retired(c.Name, c.ID[:]) }

// Device is one enrolled authorization device.
type Device struct {
	ID        protocol.DeviceID
	Name      string // last part of its SPIFFE ID
	SPIFFEID  string
	Display   string // shown by the phone, at most 24 bytes (P2.6)
	Floor     protocol.Level
	Status    Status
	Version   uint64
	CreatedAt time.Time // of its last enrolment
}

// RetiredName works as [Client.RetiredName].
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
	Roles     []string       // client only
	Floor     protocol.Level // device only
	Replace   bool           // not stored: replace an open invitation or a revoked party
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    time.Time // zero while open
	Request   [32]byte  // SHA-256 of the request that used it
	Response  []byte    // its answer
	Number    uint64    // given by the store
	Change    [8]byte   // change request that it follows from; zero: none
}

// Use names the request that uses an invitation, and its answer.
type Use struct {
	Code     [32]byte
	At       time.Time
	Request  [32]byte
	Response []byte
}

// Report is the report of a device about an approved transaction.
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
	Change      [8]byte // change request that it follows from; zero: none
}

// Origin says how a key was put on its token. A restored or imported key has lost the attributes
// that would show it (CKA_LOCAL, CKA_ALWAYS_SENSITIVE, CKA_NEVER_EXTRACTABLE), so the registry
// records it.
type Origin string

// The origins; "" is unknown.
const (
	Generated Origin = "generated" // on its token, to stay there
	Copied    Origin = "copied"    // generated on its first token, with sealed copies made at its birth
	Restored  Origin = "restored"
	Imported  Origin = "imported"
)

// Key is one key version in the registry, with the dates of its life (SP 800-57 part 1 §7). A row
// is never deleted and its version never used again. The time of an event that has not happened, or
// does not exist for the key, is zero.
type Key struct {
	Name      string // "kem", "decision", … PROTOCOL.md §2.1
	Version   uint64 // the epoch of a certified key
	ID        [20]byte
	Public    []byte // 33-byte point of a key pair, else nil
	NotBefore time.Time
	NotAfter  time.Time
	Cert      []byte // KeyCert, or RootCert of a root; nil: none
	CreatedAt time.Time

	Root     uint64   // number of the root that certified it, 0 where none did
	Origin   Origin   // how it came onto its tokens
	Tokens   []string // labels of the tokens that have it
	Revision uint64   // of this row: one more with each change

	ActivatedAt   time.Time // when it came into use, or will
	RetiredAt     time.Time // nothing signed or sealed by it is accepted afterwards
	SuspendedAt   time.Time // not used until it is resumed
	CompromisedAt time.Time // never trusted again
	DestroyedAt   time.Time // removed from every token

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

// Tally counts rows, for status and tests. Decisions are spent serials, except Questions: dry runs and questions about
// another serial, which decide nothing.
type Tally struct {
	Clients, Devices, Invitations, Decisions, Questions, Records, Keys uint64
}

// Anchor remembers outside the store how far the store has come, so that an older copy is refused.
// Revision and version never go back.
type Anchor interface {
	// Floor returns the newest mark that the host has seen, or zero.
	Floor() Mark
	// Advance makes a mark durable.
	Advance(Mark) error
}

// Mark identifies the newest head for the anchor.
type Mark struct {
	Revision uint64
	MAC      uint64   // version of mac in force
	Head     [32]byte // SHA-256 of the head of this revision; zeros: not known
}

// Expire ends an invitation that was open in the copy. It does not trust the clock of either host.
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
