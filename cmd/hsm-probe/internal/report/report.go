// Package report defines what hsm-probe reports of a PKCS#11 module: capabilities,
// behaviour, costs and throughput, and the settings that follow. The JSON keys are an API.
package report

// Label begins the CKA_LABEL of every object that a job makes. Jobs may run on a token in
// service if no other object has such a label.
const Label = "countersign-probe-"

// Sheet says what a module can do, what it costs, and how to use it.
type Sheet struct {
	Library      Library      `json:"library"`
	Token        Token        `json:"token"`
	Capabilities []Capability `json:"capabilities"`
	Behaviour    []Finding    `json:"behaviour"`
	Costs        []Cost       `json:"costs"`
	Throughput   []Curve      `json:"throughput"`
	Settings     *Settings    `json:"settings"` // null when nothing was measured
	Ways         []string     `json:"ways"`     // how the appliance uses the module; null if that was not tried
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

// Token is CK_TOKEN_INFO with its slot. A session limit of 0 means that the token reports
// none.
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

// Module is visible without a login.
type Module struct {
	Library Library `json:"library"`
	Tokens  []Token `json:"tokens"`
}

// Cleaned counts the objects of an earlier job that were removed.
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

// Verdict is the outcome of trying a mechanism.
type Verdict string

// The verdicts.
const (
	Works     Verdict = "works"      // listed, and its result is right
	Fails     Verdict = "fails"      // listed, and an error or a wrong result
	NotListed Verdict = "not_listed" // not in C_GetMechanismList, not tried
	Listed    Verdict = "listed"     // not tried: nothing here uses it
)

// Capability is one use of one mechanism.
type Capability struct {
	Name      string  `json:"name"`
	Mechanism string  `json:"mechanism"` // CKM_…
	Verdict   Verdict `json:"verdict"`
	Error     string  `json:"error,omitempty"` // function and CKR_…, when it fails
	Required  bool    `json:"required"`        // the appliance does not run without it
	UsedFor   string  `json:"used_for,omitempty"`
}

// Missing names the required capabilities that do not work, with their mechanism and what
// they block.
func Missing(all []Capability) []string {
	missing := []string{}
	for _, c := range all {
		if c.Required && c.Verdict != Works {
			missing = append(missing, c.Mechanism+" ("+c.Name+"), needed for "+c.UsedFor)
		}
	}
	return missing
}
