package sheet

// Verdict is what became of trying a mechanism.
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

// Missing names the required capabilities that do not work, with their mechanism
// and what they block.
func Missing(all []Capability) []string {
	missing := []string{}
	for _, c := range all {
		if c.Required && c.Verdict != Works {
			missing = append(missing, c.Mechanism+" ("+c.Name+"), needed for "+c.UsedFor)
		}
	}
	return missing
}
