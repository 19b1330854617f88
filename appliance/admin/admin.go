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

// Key is one key version: GET key.
type Key struct {
	Name      string     `json:"name"`
	Version   uint64     `json:"version"`
	State     string     `json:"state"` // SP 800-57 part 1 §7: pre-activation, active, deactivated
	ID        string     `json:"id"`    // CKA_ID, hex, 20 bytes
	PublicKey string     `json:"public_key,omitempty"`
	NotBefore *time.Time `json:"not_before,omitempty"`
	NotAfter  *time.Time `json:"not_after,omitempty"`
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
}

// The problem types.
const (
	ProblemNotFound    = "urn:countersign:problem:not-found"
	ProblemExists      = "urn:countersign:problem:exists"
	ProblemConflict    = "urn:countersign:problem:conflict"
	ProblemInput       = "urn:countersign:problem:input"
	ProblemUnavailable = "urn:countersign:problem:unavailable"
	ProblemPIN         = "urn:countersign:problem:pin"
	ProblemLocked      = "urn:countersign:problem:locked"
	ProblemInternal    = "urn:countersign:problem:internal"
)
