package arena

import (
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"countersign/protocol"
)

// shown is how many failures of a section are printed whole.
const shown = 12

// Report counts cases that passed and failed, and prints what failed. It is safe for
// concurrent use.
type Report struct {
	out io.Writer

	mu             sync.Mutex // guards what follows
	passed, failed int        // of the section
	all, allFailed int
}

// NewReport prints to out.
func NewReport(out io.Writer) *Report { return &Report{out: out} }

// Check is one case.
func (r *Report) Check(ok bool, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ok {
		r.passed++
		return
	}
	if r.failed++; r.failed <= shown {
		fmt.Fprintf(r.out, "   FAILED: "+format+"\n", args...)
	}
}

// Say prints a line.
func (r *Report) Say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "   "+format+"\n", args...)
}

// Section runs one section and prints its line. An error of f is a failed case.
func (r *Report) Section(name string, f func() error) {
	fmt.Fprintf(r.out, "%s\n", name)
	if err := f(); err != nil {
		r.Check(false, "the section broke off: %v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed > shown {
		fmt.Fprintf(r.out, "   … and %d failures more\n", r.failed-shown)
	}
	fmt.Fprintf(r.out, "%s: %d passed, %d failed\n", name, r.passed, r.failed)
	r.all, r.allFailed = r.all+r.passed, r.allFailed+r.failed
	r.passed, r.failed = 0, 0
}

// Total is that of the sections that ended.
func (r *Report) Total() (passed, failed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all, r.allFailed
}

// Verdict is what came back for a message. The zero value is none of them.
type Verdict struct {
	What   string // "http", "challenge", "key update", "refused in M2", or the result in M4
	Status int    // with "http"
	Code   protocol.Code
}

// HTTP is an answer by problem+json.
func HTTP(status int, code protocol.Code) Verdict {
	return Verdict{What: "http", Status: status, Code: code}
}

// InM2 is the error form of P2.
func InM2(code protocol.Code) Verdict { return Verdict{What: "refused in M2", Code: code} }

// InM4 is an answer by M4.
func InM4(result protocol.Result, code protocol.Code) Verdict {
	return Verdict{What: result.String(), Code: code}
}

// Denied is an M4 with result 0.
func Denied(code protocol.Code) Verdict { return InM4(protocol.ResultDenied, code) }

// The verdicts without a choice.
var (
	Challenged = Verdict{What: "challenge"}
	KeyUpdate  = Verdict{What: "key update"}
	Approved   = InM4(protocol.ResultApproved, 0)
	Retry      = InM4(protocol.ResultRetry, protocol.CodePassword)
	Pending    = InM4(protocol.ResultPending, protocol.CodePending)
)

func (v Verdict) String() string {
	if v.What == "http" {
		return fmt.Sprintf("HTTP %d with code %d (%s)", v.Status, uint8(v.Code), v.Code)
	}
	if v.Code == 0 {
		return v.What
	}
	return fmt.Sprintf("%s, code %d (%s)", v.What, uint8(v.Code), v.Code)
}

// Sent is a message with what came back.
type Sent struct {
	What    string
	Message []byte
	Answer  []byte // as received
	Verdict Verdict
}

// Expect is one case: the answer to a message is the wanted one.
func (r *Report) Expect(s Sent, want Verdict) {
	r.Check(s.Verdict == want, "%s: %s; wanted %s\n      sent     %s\n      received %s",
		s.What, s.Verdict, want, hex.EncodeToString(s.Message), hex.EncodeToString(s.Answer))
}

// Code is one case of a check that is made here, by whoever is under attack.
func (r *Report) Code(what string, err error, want protocol.Code) {
	got, _ := protocol.CodeOf(err)
	r.Check((err == nil) == (want == 0) && got == want, "%s: %v; wanted code %d (%s)", what, err, uint8(want), want)
}
