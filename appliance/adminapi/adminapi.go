// Package adminapi describes the admin API: JSON over a Unix socket at /v1/admin/<noun>[/<name>[/<verb>]], with the
// nouns and verbs of countersignctl. [Routes] defines each endpoint once: package server serves it and countersignctl
// calls it. The package imports no other package of the appliance, so that both ends can use it.
package adminapi

import (
	"net/url"
	"reflect"
	"strings"
	"time"
)

// Prefix is the first part of every path of the admin API.
const Prefix = "/v1/admin/"

// Route is one endpoint: its method, its path and the types of its request body and of its answer. A body of type
// []byte is sent as it is, one of type [None] is empty, any other is JSON.
type Route[Req, Res any] struct {
	method, path string // the path is below Prefix and may have {wildcards}
	query        url.Values
}

// None is the body of a request that has none.
type None struct{}

// Routes is the table of endpoints. Each quorum endpoint takes ?life_s=SECONDS: how long administrators may
// countersign, at most 7 days; the default is 24 hours. With dry_run it answers with a [Change] and changes nothing;
// a step of a key answers with the keys as they would be, and a backup of the keys with what it would hold.
var Routes = parse(struct {
	Status Route[None, Status]        `route:"GET status"`
	Doctor Route[None, []Examination] `route:"GET doctor"`
	Audit  Route[None, []Record]      `route:"GET audit"` // ?limit=N, newest first; with ?after=SEQUENCE oldest first

	ClientList    Route[None, []Client]  `route:"GET client"`
	ClientShow    Route[None, Client]    `route:"GET client/{name}"`
	ClientInvite  Route[Invite, Invited] `route:"POST client/{name}/invite"` // quorum
	ClientUnlock  Route[Ask, Client]     `route:"POST client/{name}/unlock"` // quorum
	ClientSuspend Route[None, Client]    `route:"POST client/{name}/suspend"`
	ClientResume  Route[Ask, Client]     `route:"POST client/{name}/resume"` // quorum
	ClientRevoke  Route[None, Client]    `route:"POST client/{name}/revoke"`

	DeviceList    Route[None, []Device]  `route:"GET device"`
	DeviceShow    Route[None, Device]    `route:"GET device/{name}"`
	DeviceInvite  Route[Invite, Invited] `route:"POST device/{name}/invite"` // quorum
	DeviceSuspend Route[None, Device]    `route:"POST device/{name}/suspend"`
	DeviceResume  Route[Ask, Device]     `route:"POST device/{name}/resume"` // quorum
	DeviceRevoke  Route[None, Device]    `route:"POST device/{name}/revoke"`

	// A key is NAME or NAME@VERSION. A step answers with every key version that it changes.
	KeyList     Route[None, []Key]             `route:"GET key"`
	KeyPlan     Route[None, KeyPlan]           `route:"GET key/plan"`
	KeyAttest   Route[None, []Finding]         `route:"GET key/attest"`
	KeyShow     Route[None, []Key]             `route:"GET key/{name}"`
	KeyBackup   Route[KeyBackupAsk, KeyBackup] `route:"POST key/backup"`        // quorum
	KeyKept     Route[Kept, None]              `route:"POST key/backup/kept"`   // whether the caller has the file
	KeyCreate   Route[KeyStep, []Key]          `route:"POST key/{name}/create"` // quorum, as every step but suspend
	KeyRotate   Route[KeyStep, []Key]          `route:"POST key/{name}/rotate"`
	KeyActivate Route[KeyStep, []Key]          `route:"POST key/{name}/activate"`
	KeyRetire   Route[KeyStep, []Key]          `route:"POST key/{name}/retire"`
	KeySuspend  Route[KeyStep, []Key]          `route:"POST key/{name}/suspend"`
	KeyResume   Route[KeyStep, []Key]          `route:"POST key/{name}/resume"`
	KeyDestroy  Route[KeyStep, []Key]          `route:"POST key/{name}/destroy"` // quorum

	ChangeList     Route[None, []Change] `route:"GET change"`
	ChangeShow     Route[None, Change]   `route:"GET change/{id}"`
	ChangeSign     Route[Sign, Change]   `route:"POST change/{id}/sign"`
	ChangeWithdraw Route[None, Change]   `route:"POST change/{id}/withdraw"`

	AdminList    Route[None, []Administrator]     `route:"GET admin"`
	AdminShow    Route[None, Administrator]       `route:"GET admin/{name}"`
	AdminAdd     Route[Administer, Administrator] `route:"POST admin/{name}/add"` // quorum
	AdminSuspend Route[None, Administrator]       `route:"POST admin/{name}/suspend"`
	AdminResume  Route[Administer, Administrator] `route:"POST admin/{name}/resume"` // quorum
	AdminRevoke  Route[Administer, Administrator] `route:"POST admin/{name}/revoke"` // quorum

	PolicyShow    Route[None, Policy]          `route:"GET policy"`
	PolicyHistory Route[None, []PolicyVersion] `route:"GET policy/history"` // the newest 100
	PolicyAt      Route[None, Policy]          `route:"GET policy/{version}"`
	PolicyApply   Route[Apply, Policy]         `route:"POST policy/apply"` // quorum

	// The answer is the database itself, see [Caller.CopyStore].
	StoreBackup Route[Ask, []byte] `route:"POST store/backup"`      // quorum
	StoreKept   Route[Kept, None]  `route:"POST store/backup/kept"` // whether the caller has the file

	HSMStatus Route[None, []Token]   `route:"GET hsm"`
	HSMUnlock Route[[]byte, []Token] `route:"POST hsm/unlock"` // the body is the PIN; ?token=NAME
	HSMDrain  Route[None, []Token]   `route:"POST hsm/{token}/drain"`
	HSMResume Route[None, []Token]   `route:"POST hsm/{token}/resume"`
}{})

// parse sets every route of a struct from the field's tag.
func parse[T any](table T) T {
	v := reflect.ValueOf(&table).Elem()
	for i := range v.NumField() {
		method, path, _ := strings.Cut(v.Type().Field(i).Tag.Get("route"), " ")
		v.Field(i).Addr().Interface().(interface{ set(method, path string) }).set(method, path)
	}
	return table
}

func (r *Route[Req, Res]) set(method, path string) { r.method, r.path = method, path }

// Pattern returns the route's pattern for [http.ServeMux].
func (r Route[Req, Res]) Pattern() string { return r.method + " " + Prefix + r.path }

// With returns the route with a query parameter.
func (r Route[Req, Res]) With(name, value string) Route[Req, Res] {
	query := url.Values{name: {value}}
	for name, values := range r.query {
		query[name] = values
	}
	r.query = query
	return r
}

// Preview returns the route as a request with dry_run uses it: the answer is a change request that is not stored.
func (r Route[Req, Res]) Preview() Route[Req, Change] {
	return Route[Req, Change](r)
}

// Invite asks for an activation code.
type Invite struct {
	TTLSeconds int64  `json:"ttl_s,omitempty"`   // default 24 hours, at most 30 days
	Display    string `json:"display,omitempty"` // device: the name that phones show, at most 24 bytes; default its name
	Floor      uint8  `json:"floor,omitempty"`   // device: the lowest level it accepts, default 1

	Roles []string `json:"roles,omitzero"` // client: for example "approver"; default none

	// Replace revokes the client or device of this name, if it is enrolled, and withdraws an open code for it. What is
	// absent above keeps the value that the client, the device or the open code has; [] for roles means none.
	Replace bool `json:"replace,omitempty"`

	DryRun bool `json:"dry_run,omitempty"`
}

// Ask asks for a change that needs nothing but its path.
type Ask struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// Invited is an activation code. The appliance keeps only its hash, and shows it this once.
type Invited struct {
	Name           string    `json:"name"`
	Kind           string    `json:"kind"`
	ActivationCode string    `json:"activation_code"`
	ExpiresAt      time.Time `json:"expires_at"`
	Roles          []string  `json:"roles,omitempty"`   // client
	Display        string    `json:"display,omitempty"` // device
	Floor          uint8     `json:"floor,omitempty"`   // device
}

// Client is an enrolled phone.
type Client struct {
	Name       string    `json:"name"`
	ID         string    `json:"id"`
	Status     string    `json:"status"`
	SigningKey string    `json:"signing_key"`      // hex, 33 bytes
	UVKey      string    `json:"uv_key,omitempty"` // hex, 33 bytes; it is a factor for a client with the role "uv"
	Roles      []string  `json:"roles"`
	Version    uint64    `json:"version"`
	Highest    int64     `json:"highest_counter"` // -1: no counter was spent yet
	Password   Password  `json:"password"`
	CreatedAt  time.Time `json:"created_at"`
	// ExpiresAt is set for an open activation code, whose status is "invited". It has a name and roles only.
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// Password is the state of a client's offline password.
type Password struct {
	Set         bool       `json:"set"`
	Wrong       uint32     `json:"consecutive_wrong"`
	Locked      bool       `json:"locked"`                 // no attempt is accepted now
	LockedUntil *time.Time `json:"locked_until,omitempty"` // absent: until an administrator unlocks it
}

// Device is an enrolled authorization device.
type Device struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	SPIFFEID  string    `json:"spiffe_id"`
	Display   string    `json:"display"`
	Floor     uint8     `json:"floor"`
	Status    string    `json:"status"`
	Version   uint64    `json:"version"`
	CreatedAt time.Time `json:"created_at"`
	// ExpiresAt is set for an open activation code, whose status is "invited". It has a name, a display name and a
	// floor only.
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// Statuses of a client or device that is not enrolled: its activation code is open, or was withdrawn.
const (
	StatusInvited   = "invited"
	StatusWithdrawn = "withdrawn"
)

// Key is one version of a key. Its states follow SP 800-57 part 1 §7.
type Key struct {
	Name      string   `json:"name"`
	Version   uint64   `json:"version"`
	State     string   `json:"state"`    // pre-activation, active, deactivated, suspended, compromised, destroyed
	Accepted  bool     `json:"accepted"` // signatures by it, or messages for it, are accepted
	Purpose   string   `json:"purpose"`
	Algorithm string   `json:"algorithm"`
	ID        string   `json:"id,omitempty"`          // CKA_ID, hex, 20 bytes; absent: not generated yet
	SPKI      string   `json:"spki_sha256,omitempty"` // hex, 32 bytes, of a key pair
	PublicKey string   `json:"public_key,omitempty"`  // hex, 33 bytes, of a key pair
	Root      uint64   `json:"root,omitempty"`        // number of the root that certified it
	Origin    string   `json:"origin"`                // generated, copied, restored, imported
	Tokens    []string `json:"tokens"`                // labels
	OnToken   bool     `json:"on_token"`
	SealedFor string   `json:"sealed_for,omitempty"` // hex, 33 bytes: the backup key that can open its sealed copy

	CreatedAt     time.Time  `json:"created_at"`
	NotBefore     *time.Time `json:"not_before,omitempty"` // of its KeyCert
	NotAfter      *time.Time `json:"not_after,omitempty"`
	ActivatedAt   *time.Time `json:"activated_at,omitempty"` // in the future: it activates itself then
	OverlapUntil  *time.Time `json:"overlap_until,omitempty"`
	RetiredAt     *time.Time `json:"retired_at,omitempty"`
	SuspendedAt   *time.Time `json:"suspended_at,omitempty"`
	CompromisedAt *time.Time `json:"compromised_at,omitempty"`
	DestroyedAt   *time.Time `json:"destroyed_at,omitempty"`
}

// Finding compares one object on the token with the key registry.
type Finding struct {
	Key     string   `json:"key"`              // name@version, or the label of an unknown object
	Token   string   `json:"token,omitempty"`  // which of several
	ID      string   `json:"id"`               // CKA_ID, hex
	Origin  string   `json:"origin,omitempty"` // generated, copied, restored, imported; "": no row has this id
	Good    bool     `json:"good"`
	Unknown bool     `json:"unknown"` // no row has this id
	Drift   []string `json:"drift"`   // each attribute that differs from the registry
}

// KeyPlan is the rotation schedule of the keys.
type KeyPlan struct {
	Auto    bool     `json:"auto"` // the appliance takes the steps itself
	Keys    []KeyDue `json:"keys"`
	Records Renewal  `json:"records"`
}

// KeyDue is the date at which a key is due for rotation.
type KeyDue struct {
	Name     string     `json:"name"`
	Version  uint64     `json:"version"`        // in use; 0: no version is
	Standing string     `json:"standing"`       // not scheduled, scheduled, later, due, overdue
	At       *time.Time `json:"at,omitempty"`   // absent: never
	Next     uint64     `json:"next,omitempty"` // the version that waits for activation, or activates itself
}

// Renewal counts the records that are under the mac and wrap keys in use.
type Renewal struct {
	Total   int    `json:"total"`
	Left    int    `json:"left"`
	Running bool   `json:"running"`
	Problem string `json:"problem,omitempty"` // why some are left
}

// KeyStep is a step in the life of a key.
type KeyStep struct {
	DryRun      bool `json:"dry_run,omitempty"`     // answer with the key versions as they would be
	Request     bool `json:"request,omitempty"`     // with dry_run: answer with the change request that the step would make
	Early       bool `json:"early,omitempty"`       // retire: before its overlap ends
	Compromised bool `json:"compromised,omitempty"` // retire: permanently; rotate: rule out all earlier versions
}

// KeyBackupAsk asks for a backup of the keys.
type KeyBackupAsk struct {
	Partial bool `json:"partial,omitempty"` // even if some keys have no sealed copy
	DryRun  bool `json:"dry_run,omitempty"` // answer with the coverage, without a file
}

// KeyBackup is a backup of the keys.
type KeyBackup struct {
	At         time.Time `json:"at"`
	Sequence   uint64    `json:"sequence"`         // of the newest audit record at that time
	Keys       []string  `json:"keys"`             // name@version of every key that it restores
	Missing    []string  `json:"missing"`          // name@version of every key without a sealed copy
	BackupKeys []string  `json:"backup_keys"`      // hex, 33 bytes: the keys whose shares a restore needs
	SHA256     string    `json:"sha256,omitempty"` // of File, hex; absent in a dry run
	File       []byte    `json:"file,omitempty"`
}

// Kept says whether a backup is in a file, or why it is not. The audit has it: the appliance itself knows only that the
// backup was sent.
type Kept struct {
	SHA256  string `json:"sha256"`            // of the backup, hex
	Problem string `json:"problem,omitempty"` // at most 500 bytes; "": it is in a file
}

// HeaderCopy is the header of a copy of the database: a [StoreCopy] as JSON.
const HeaderCopy = "Countersign-Copy"

// StoreCopy describes a copy of the database.
type StoreCopy struct {
	Sequence  uint64    `json:"sequence"`            // of its newest audit record: the recovery point
	At        time.Time `json:"at"`                  // of that record
	Size      int64     `json:"size"`                // bytes
	SHA256    string    `json:"sha256"`              // hex
	Statement []byte    `json:"statement,omitempty"` // signed by the appliance
}

// Change is a change request.
type Change struct {
	ID         string         `json:"id"`   // hex, 8 bytes: the beginning of the hash
	Hash       string         `json:"hash"` // hex, 32 bytes: what administrators countersign
	Kind       string         `json:"kind"`
	Parameters map[string]any `json:"parameters"` // byte strings in hex
	Document   []byte         `json:"document"`   // deterministic CBOR, base64
	State      string         `json:"state"`      // open, granted, taken, executed, failed, expired, withdrawn; dry-run
	Reason     string         `json:"reason,omitempty"`
	By         string         `json:"by"`
	Effect     []string       `json:"effect"`   // in words: first what it does, then one line for each detail
	Required   int            `json:"required"` // administrators
	Signed     []string       `json:"signed"`   // administrators whose countersignatures count
	More       int            `json:"more"`     // how many are missing
	Missing    []string       `json:"missing"`  // administrators who can still countersign
	CreatedAt  time.Time      `json:"created_at"`
	ExpiresAt  time.Time      `json:"expires_at"`
	EndedAt    *time.Time     `json:"ended_at,omitempty"`
	// CountersignedAs is the administrator whose countersignature the call added.
	CountersignedAs string `json:"countersigned_as,omitempty"`
}

// ChangesShown is how many change requests the list has at most, beside those that are in force.
const ChangesShown = 1000

// Sign countersigns a change request.
type Sign struct {
	// Signature is a COSE_Sign1 of the hash (appliance/change/CHANGE.md), base64. Without one the admin socket
	// countersigns.
	Signature []byte `json:"signature,omitempty"`
}

// Administrator is a person who can countersign changes.
type Administrator struct {
	Name      string    `json:"name"`
	Signer    string    `json:"signer"`     // hex, 8 bytes: SHA-256(public key)[0:8]
	PublicKey string    `json:"public_key"` // hex, 33 bytes
	Status    string    `json:"status"`
	Version   uint64    `json:"version"`
	CreatedAt time.Time `json:"created_at"`
}

// Administer adds, resumes or revokes an administrator.
type Administer struct {
	PublicKey string `json:"public_key,omitempty"` // add: hex, 33 or 65 bytes
	DryRun    bool   `json:"dry_run,omitempty"`
}

// Policy is a version of the policy.
type Policy struct {
	PolicyVersion
	Document string   `json:"document"` // policy.toml
	Quorums  []Quorum `json:"quorums"`
}

// PolicyVersion says when a version of the policy came into force, and by which change request.
type PolicyVersion struct {
	Version     uint64    `json:"version"`
	Hash        string    `json:"hash"` // hex, 32 bytes
	ActivatedAt time.Time `json:"activated_at"`
	Change      string    `json:"change,omitempty"` // id of the request; absent: it came with the appliance or a restore
}

// Quorum is the number of administrators that a kind of change requires.
type Quorum struct {
	Kind     string `json:"kind"`
	Required int    `json:"required"`
	Able     int    `json:"able"` // administrators who can countersign now
}

// Apply activates a policy.
type Apply struct {
	Document string `json:"document"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// RecordsShown is how many audit records an answer has without a limit, and RecordsMost is the highest limit.
const (
	RecordsShown = 100
	RecordsMost  = 1000
)

// Record is one audit record.
type Record struct {
	Sequence uint64         `json:"sequence"`
	At       time.Time      `json:"at"`
	Kind     string         `json:"kind"`
	Subject  string         `json:"subject"`      // what it is about: its kind, "/" and its name
	ID       string         `json:"id,omitempty"` // of a client or device, hex; absent before it is enrolled
	Leaf     string         `json:"leaf"`         // SHA-256(salt || record), hex
	Fields   map[string]any `json:"fields"`
}

// Status summarizes the appliance.
type Status struct {
	TrustDomain   string  `json:"trust_domain"`
	RootKey       string  `json:"root_key"`
	PolicyVersion uint64  `json:"policy_version"`
	PolicyHash    string  `json:"policy_hash"`
	HSM           HSM     `json:"hsm"`
	Counts        Counts  `json:"counts"`
	OpenCodes     int     `json:"open_codes"` // activation codes that can still be used
	Uptime        float64 `json:"uptime_s"`
}

// HSM summarizes the worker processes of all tokens.
type HSM struct {
	Ready   bool `json:"ready"`
	Workers int  `json:"workers"` // alive
	Wanted  int  `json:"wanted"`
}

// Counts counts the rows of the store.
type Counts struct {
	Clients     uint64 `json:"clients"`
	Devices     uint64 `json:"devices"`
	Invitations uint64 `json:"invitations"`
	Decisions   uint64 `json:"decisions"`
	Questions   uint64 `json:"questions"` // dry runs and questions about a serial, which decide nothing
	Records     uint64 `json:"records"`
	Keys        uint64 `json:"keys"`
}

// Token is a PKCS#11 token with its worker processes.
type Token struct {
	Name     string   `json:"name"`
	Label    string   `json:"label"`
	Serial   string   `json:"serial,omitempty"`
	Module   string   `json:"module"`
	State    string   `json:"state"` // ready, degraded, unavailable, locked, pin-refused, refused
	Reason   string   `json:"reason,omitempty"`
	NeedsPIN bool     `json:"needs_pin"` // it starts no worker before hsm/unlock
	Drained  bool     `json:"drained"`   // it gets no calls
	InFlight int      `json:"in_flight"` // calls without an answer yet
	Keys     int      `json:"keys"`      // number of keys in use that it has
	Lacks    []string `json:"lacks"`     // name@version of each key in use that it lacks; null: unknown
	Wanted   int      `json:"wanted"`    // workers
	Workers  []Worker `json:"workers"`
	Sessions int      `json:"sessions"` // of each worker
	Ways     []string `json:"ways"`     // how its module is used; null before a worker opened it
}

// States of a [Token] that other packages ask for.
const (
	TokenReady    = "ready"
	TokenDegraded = "degraded" // it serves with fewer workers
	TokenRefused  = "refused"  // it has another key under the same id: see Reason
)

// Serves reports whether the token answers calls.
func (t Token) Serves() bool { return t.State == TokenReady || t.State == TokenDegraded }

// Worker is a worker process.
type Worker struct {
	PID      int        `json:"pid"`
	State    string     `json:"state"` // well, silent
	Started  time.Time  `json:"started_at"`
	InFlight int        `json:"in_flight"`      // calls that wait or are in the token
	Most     int        `json:"most_in_flight"` // before it refuses calls as busy
	Calls    uint64     `json:"calls"`          // answered
	Wrong    int        `json:"wrong_in_a_row"`
	Proven   *time.Time `json:"proven_at,omitempty"` // when an answer was last verified and correct
	CallUS   float64    `json:"call_us"`             // time of one call inside the token, smoothed, µs
}

// Examination is the result of one check of countersignd doctor. GET doctor answers with the checks that only the
// daemon can make.
type Examination struct {
	Check    string `json:"check"`
	Status   string `json:"status"` // one of the Check… constants
	Detail   string `json:"detail"`
	Advice   string `json:"advice,omitempty"`
	ExitCode int    `json:"exit_code,omitempty"` // of the program, if only this check failed: 1, 69, 74, 77 or 78
}

// The statuses of an [Examination].
const (
	CheckOK   = "ok"
	CheckWarn = "warn"
	CheckFail = "fail"
)

// Problem is an error answer (RFC 9457). Type is one of package problem.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`

	// With problem.Quorum: the change request that waits, and the activation code that becomes valid once the change
	// is executed. The code is shown this once.
	Change  *Change  `json:"change,omitempty"`
	Invited *Invited `json:"invited,omitempty"`
}
