package attack

import (
	"encoding/hex"
	"fmt"

	"countersign/protocol"
)

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
func (a *Arena) Expect(s Sent, want Verdict) {
	a.Check(s.Verdict == want, "%s: %s; wanted %s\n      sent     %s\n      received %s",
		s.What, s.Verdict, want, hex.EncodeToString(s.Message), hex.EncodeToString(s.Answer))
}

// Code checks the error of a verification that the test itself makes, as the party under attack.
func (a *Arena) Code(what string, err error, want protocol.Code) {
	got, _ := protocol.CodeOf(err)
	a.Check((err == nil) == (want == 0) && got == want, "%s: %v; wanted code %d (%s)", what, err, uint8(want), want)
}
