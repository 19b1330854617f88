// Package admin is the words of the admin API, JSON at
// /v1/admin/<noun>[/<name>[/<verb>]]: what countersignctl sends and gets. It is a
// leaf, so that both ends can import it.
package admin

import "time"

// Prefix of every path of the admin API.
const Prefix = "/v1/admin/"

// Invite asks for an activation code: POST client/<name>/invite or
// device/<name>/invite.
type Invite struct {
	TTLSeconds int64  `json:"ttl_s,omitempty"`   // default 24 hours, at most 30 days
	Display    string `json:"display,omitempty"` // device: what the phone shows, ≤ 24 bytes; default its name
	Floor      uint8  `json:"floor,omitempty"`   // device: lowest level it accepts, default 1

	Roles []string `json:"roles,omitempty"` // client: "approver", for one

	// Replace revokes the party of this name, if it is enrolled, and withdraws an
	// open code for it.
	Replace bool `json:"replace,omitempty"`

	DryRun bool `json:"dry_run,omitempty"` // device: only answer, with a [Change]
}

// Invited is the answer. The code is told once and kept as a hash only.
type Invited struct {
	Name           string    `json:"name"`
	Kind           string    `json:"kind"`
	ActivationCode string    `json:"activation_code"`
	ExpiresAt      time.Time `json:"expires_at"`
}

// Client is one enrolled phone: GET client, client/<name>, and the answer of
// POST client/<name>/{suspend,resume,revoke,unlock}.
type Client struct {
	Name       string    `json:"name"`
	ID         string    `json:"id"`
	Status     string    `json:"status"`
	SigningKey string    `json:"signing_key"` // hex, 33 bytes
	Roles      []string  `json:"roles"`
	Version    uint64    `json:"version"`
	Highest    int64     `json:"highest_counter"` // -1: nothing spent yet
	Password   Password  `json:"password"`
	CreatedAt  time.Time `json:"created_at"`
}

// Password is the state of a client's offline password.
type Password struct {
	Set         bool       `json:"set"`
	Wrong       uint32     `json:"consecutive_wrong"`
	Locked      bool       `json:"locked"`                 // no try is taken now
	LockedUntil *time.Time `json:"locked_until,omitempty"` // none: until it is unlocked
}

// Device is one enrolled authorization device, as Client.
type Device struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	SPIFFEID  string    `json:"spiffe_id"`
	Display   string    `json:"display"`
	Floor     uint8     `json:"floor"`
	Status    string    `json:"status"`
	Version   uint64    `json:"version"`
	CreatedAt time.Time `json:"created_at"`
}

// Key is one key version: GET key, key/<name>[@<version>], and the answer of a step.
type Key struct {
	Name      string   `json:"name"`
	Version   uint64   `json:"version"`
	State     string   `json:"state"`    // SP 800-57 part 1 §7: pre-activation, active, deactivated, suspended, compromised, destroyed
	Accepted  bool     `json:"accepted"` // what was made with or for it is taken
	Purpose   string   `json:"purpose"`
	Algorithm string   `json:"algorithm"`
	ID        string   `json:"id,omitempty"`          // CKA_ID, hex, 20 bytes; none: yet to be made
	SPKI      string   `json:"spki_sha256,omitempty"` // hex, 32 bytes, of a key pair
	PublicKey string   `json:"public_key,omitempty"`  // hex, 33 bytes, of a key pair
	Root      uint64   `json:"root,omitempty"`        // number of the root that certified it
	Origin    string   `json:"origin"`                // generated, copied, restored, imported
	Tokens    []string `json:"tokens"`                // labels
	OnToken   bool     `json:"on_token"`
	SealedFor string   `json:"sealed_for,omitempty"` // hex, 33 bytes: backup key that a sealed copy is for

	CreatedAt     time.Time  `json:"created_at"`
	NotBefore     *time.Time `json:"not_before,omitempty"` // of its KeyCert
	NotAfter      *time.Time `json:"not_after,omitempty"`
	ActivatedAt   *time.Time `json:"activated_at,omitempty"` // in the future: it comes into use by itself then
	OverlapUntil  *time.Time `json:"overlap_until,omitempty"`
	RetiredAt     *time.Time `json:"retired_at,omitempty"`
	SuspendedAt   *time.Time `json:"suspended_at,omitempty"`
	CompromisedAt *time.Time `json:"compromised_at,omitempty"`
	DestroyedAt   *time.Time `json:"destroyed_at,omitempty"`
}

// Finding is an object on the token as compared with the registry: GET key/attest.
type Finding struct {
	Key     string   `json:"key"`              // name@version, or the label of an unknown object
	Token   string   `json:"token,omitempty"`  // which of several
	ID      string   `json:"id"`               // CKA_ID, hex
	Origin  string   `json:"origin,omitempty"` // generated, copied, restored, imported; "": no row has this id
	Good    bool     `json:"good"`
	Unknown bool     `json:"unknown"` // no row has this id
	Drift   []string `json:"drift"`   // what is not as it must be
}

// KeyPlan is what is to be done with the keys: GET key/plan.
type KeyPlan struct {
	Auto    bool     `json:"auto"` // the appliance does it by itself
	Keys    []KeyDue `json:"keys"`
	Records Renewal  `json:"records"`
}

// KeyDue is when a key is to be rotated.
type KeyDue struct {
	Name     string     `json:"name"`
	Version  uint64     `json:"version"`        // in use, 0: none
	Standing string     `json:"standing"`       // not scheduled, scheduled, later, due, overdue
	At       *time.Time `json:"at,omitempty"`   // none: never
	Next     uint64     `json:"next,omitempty"` // version that waits, or comes by itself
}

// Renewal is how far records have come to the mac and wrap keys in use.
type Renewal struct {
	Total   int    `json:"total"`
	Left    int    `json:"left"`
	Running bool   `json:"running"`
	Problem string `json:"problem,omitempty"` // why some are left
}

// KeyStep is the body of POST key/<name>[@<version>]/{create,rotate,activate,retire,
// suspend,resume,destroy}. The answer is every key version that it changes.
type KeyStep struct {
	DryRun      bool `json:"dry_run,omitempty"`     // only answer
	Early       bool `json:"early,omitempty"`       // retire: before its overlap is over
	Compromised bool `json:"compromised,omitempty"` // retire: for good; rotate: rule out all earlier versions
}

// Record is one audit record: GET audit?after=N&limit=N.
type Record struct {
	Sequence uint64         `json:"sequence"`
	At       time.Time      `json:"at"`
	Kind     string         `json:"kind"`
	Subject  string         `json:"subject"`
	Leaf     string         `json:"leaf"` // SHA-256(salt || record), hex
	Fields   map[string]any `json:"fields"`
}

// Status is the state of the appliance: GET status.
type Status struct {
	TrustDomain   string  `json:"trust_domain"`
	RootKey       string  `json:"root_key"`
	PolicyVersion uint64  `json:"policy_version"`
	PolicyHash    string  `json:"policy_hash"`
	HSM           HSM     `json:"hsm"`
	Counts        Counts  `json:"counts"`
	Uptime        float64 `json:"uptime_s"`
}

// HSM is the state of the token as the workers see it.
type HSM struct {
	Ready   bool `json:"ready"`
	Workers int  `json:"workers"` // alive
	Wanted  int  `json:"wanted"`
}

// Token is one PKCS#11 token and its workers: GET hsm, and the answer of POST
// hsm/unlock, whose body is the PIN, and of POST hsm/<token>/{drain,resume}.
type Token struct {
	Name     string   `json:"name"`
	Label    string   `json:"label"`
	Serial   string   `json:"serial,omitempty"`
	Module   string   `json:"module"`
	State    string   `json:"state"` // ready, degraded, unavailable, locked, pin-refused
	Reason   string   `json:"reason,omitempty"`
	NeedsPIN bool     `json:"needs_pin"` // starts no worker before POST hsm/unlock
	Drained  bool     `json:"drained"`   // takes no calls
	InFlight int      `json:"in_flight"` // calls it has not answered
	Wanted   int      `json:"wanted"`    // workers
	Workers  []Worker `json:"workers"`
	Sessions int      `json:"sessions"` // of each worker
}

// Worker is one worker process.
type Worker struct {
	PID      int        `json:"pid"`
	State    string     `json:"state"` // well, silent
	Started  time.Time  `json:"started_at"`
	InFlight int        `json:"in_flight"`      // calls in the token or waiting
	Most     int        `json:"most_in_flight"` // before more are refused as busy
	Calls    uint64     `json:"calls"`          // answered
	Wrong    int        `json:"wrong_in_a_row"`
	Proven   *time.Time `json:"proven_at,omitempty"` // when an answer was last verified and right
	CallUS   float64    `json:"call_us"`             // time of one call inside the token, smoothed, µs
}

// Counts of what the store holds.
type Counts struct {
	Clients     uint64 `json:"clients"`
	Devices     uint64 `json:"devices"`
	Invitations uint64 `json:"invitations"`
	Decisions   uint64 `json:"decisions"`
	Records     uint64 `json:"records"`
	Keys        uint64 `json:"keys"`
}

// Problem is an RFC 9457 answer of the admin API. Type ends in one of the
// Problem… constants.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`

	// With ProblemQuorum: the request that waits, and the activation code that is good
	// once it is executed, told this once.
	Change  *Change  `json:"change,omitempty"`
	Invited *Invited `json:"invited,omitempty"`
}

// The problem types.
const (
	ProblemNotFound    = "urn:countersign:problem:not-found"
	ProblemExists      = "urn:countersign:problem:exists"
	ProblemConflict    = "urn:countersign:problem:conflict"
	ProblemKeyStep     = "urn:countersign:problem:key-step"
	ProblemUnsupported = "urn:countersign:problem:unsupported"
	ProblemUncovered   = "urn:countersign:problem:uncovered"
	ProblemQuorum      = "urn:countersign:problem:quorum"
	ProblemOver        = "urn:countersign:problem:change-over"
	ProblemSigner      = "urn:countersign:problem:signer"
	ProblemSignature   = "urn:countersign:problem:signature"
	ProblemInput       = "urn:countersign:problem:input"
	ProblemUnavailable = "urn:countersign:problem:unavailable"
	ProblemPIN         = "urn:countersign:problem:pin"
	ProblemLocked      = "urn:countersign:problem:locked"
	ProblemInternal    = "urn:countersign:problem:internal"
)
