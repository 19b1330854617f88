package deviceapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"countersign/protocol"
)

// Problem is the appliance's answer when it cannot seal one: problem+json (RFC 9457) with a code of
// PROTOCOL.md §4. The device turns it into an ME with the same code and retry time.
type Problem struct {
	Type   string        `json:"type"`
	Title  string        `json:"title"`
	Status int           `json:"status"`
	Detail string        `json:"detail,omitempty"`
	Code   protocol.Code `json:"code,omitempty"`
	Retry  uint64        `json:"retry,omitempty"` // seconds, as in Retry-After
}

// ProblemType is the media type of a [Problem].
const ProblemType = "application/problem+json"

// HTTPStatus returns the HTTP status of a code, PROTOCOL.md §4; 500 for codes that the appliance
// never sends by HTTP.
func HTTPStatus(c protocol.Code) int {
	switch c {
	case protocol.CodeFormat, protocol.CodeVersion, protocol.CodeSignature, protocol.CodeLevel:
		return http.StatusBadRequest
	case protocol.CodeRefused, protocol.CodeDevice:
		return http.StatusForbidden
	case protocol.CodeExpired:
		return http.StatusGone
	case protocol.CodeBusy:
		return http.StatusTooManyRequests
	case protocol.CodeHSM:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// ProblemOf returns the problem for the code that an error wraps. It leaves out the error's text,
// which may contain internal details.
func ProblemOf(err error) Problem {
	code, _ := protocol.CodeOf(err)
	p := Problem{Type: "about:blank", Status: HTTPStatus(code), Code: code}
	p.Title = http.StatusText(p.Status)
	if code != 0 {
		p.Title = code.String()
	}
	var retry protocol.Retry
	if errors.As(err, &retry) {
		p.Retry = uint64((max(retry.After, 0) + time.Second - 1) / time.Second)
	}
	return p
}

// ParseProblem decodes a problem+json body. It ignores unknown members, as RFC 9457 §3.2 requires,
// and returns CodeFormat for anything but a JSON object.
func ParseProblem(body []byte) (p Problem, err error) {
	if err := json.Unmarshal(body, &p); err != nil {
		return Problem{}, protocol.CodeFormat.Errorf("problem+json: %v", err)
	}
	return p, nil
}

// Err returns an error that wraps the problem's code, as [protocol.Retry] if it has a retry time;
// nil without a code.
func (p Problem) Err() error {
	switch {
	case p.Code == 0:
		return nil
	case p.Retry != 0:
		return protocol.Retry{Code: p.Code, After: protocol.Seconds(p.Retry)}
	}
	return p.Code
}
