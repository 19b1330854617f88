// Package sheet is what is known of a PKCS#11 module after it was tried: the
// conformance sheet that hsm-worker makes and countersignctl prints, and what
// follows from it. Its JSON keys are an API.
package sheet

import "time"

// Job names what an hsm-worker does instead of serving; it is its only argument.
type Job string

// The jobs, each with the [Order] it reads and what it reports.
const (
	Slots Job = "slots" // what the module shows without a login: [Module]
	Probe Job = "probe" // the whole sheet: [Sheet]
	Loop  Job = "loop"  // raw speed, calls in a C loop: [Raw]
	Clean Job = "clean" // destroy what an interrupted job left: [Cleaned]
)

// Order is what a job is told beside token and PIN.
type Order struct {
	Quick    bool          `json:"quick,omitempty"`     // a probe of at most 5 s in place of 30 s
	WrongPIN bool          `json:"wrong_pin,omitempty"` // try a wrong PIN once after the login
	Time     time.Duration `json:"time,omitempty"`      // of each measurement of a loop, nanoseconds
	Sessions []int         `json:"sessions,omitempty"`  // of the measurements of a loop
	Only     []string      `json:"only,omitempty"`      // operations of a loop, all when empty
}

// Label begins the CKA_LABEL of every object that a job makes. Who makes none of
// that name may run jobs on a token in service.
const Label = "countersign-probe-"

// Sheet is what a module can do, what it costs, and how to use it.
type Sheet struct {
	Library      Library      `json:"library"`
	Token        Token        `json:"token"`
	Capabilities []Capability `json:"capabilities"`
	Behaviour    []Finding    `json:"behaviour"`
	Costs        []Cost       `json:"costs"`
	Throughput   []Curve      `json:"throughput"`
	Settings     *Settings    `json:"settings"` // null when nothing was measured
	Missing      []string     `json:"missing"`  // required capabilities that do not work
	Skipped      []string     `json:"skipped"`  // parts that there was no time for
	Left         int          `json:"left"`     // objects of an interrupted job, removed
	TookMS       int64        `json:"took_ms"`
}

// Library is CK_INFO.
type Library struct {
	Path         string `json:"path"`
	Description  string `json:"description"`
	Manufacturer string `json:"manufacturer"`
	Version      string `json:"version"`
	Cryptoki     string `json:"cryptoki"`
}

// Token is CK_TOKEN_INFO with its slot. A session limit of 0 is none that the
// token tells of.
type Token struct {
	Slot            uint     `json:"slot"`
	SlotDescription string   `json:"slot_description"`
	SlotMaker       string   `json:"slot_manufacturer"`
	Label           string   `json:"label"`
	Serial          string   `json:"serial"`
	Manufacturer    string   `json:"manufacturer"`
	Model           string   `json:"model"`
	Hardware        string   `json:"hardware_version"`
	Firmware        string   `json:"firmware_version"`
	Flags           []string `json:"flags"`
	MaxSessions     uint     `json:"max_sessions"`
	MaxRWSessions   uint     `json:"max_rw_sessions"`
	Mechanisms      int      `json:"mechanisms"` // how many are listed
}

// Module is what can be seen without a login.
type Module struct {
	Library Library `json:"library"`
	Tokens  []Token `json:"tokens"`
}

// Cleaned counts what a job found of an earlier one and removed.
type Cleaned struct {
	Removed int `json:"removed"`
}

// Finding is one observed behaviour that the standard leaves to the module.
type Finding struct {
	Name   string `json:"name"`
	Answer string `json:"answer"`
}

// Cost is the time of one call, or of one part of it.
type Cost struct {
	Name string  `json:"name"`
	US   float64 `json:"us"` // mean, µs
	Note string  `json:"note,omitempty"`
}
