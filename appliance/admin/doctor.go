package admin

// Examination is what one check of countersignd doctor came to: GET doctor has those that
// only the daemon can make.
type Examination struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, warn, fail
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
	// ExitCode is that of the program, when this is what failed: 1, 69, 74, 77 or 78.
	ExitCode int `json:"exit_code,omitempty"`
}

// The statuses.
const (
	CheckOK   = "ok"
	CheckWarn = "warn"
	CheckFail = "fail"
)
