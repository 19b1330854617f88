package deviceapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"countersign/protocol"
)

// Problem is what S answers when it can seal nothing: problem+json of RFC 9457
// with the code of PROTOCOL.md §4. D turns it into ME with the same code and retry.
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

// HTTPStatus is the status of a code that S answers by HTTP, PROTOCOL.md §4;
// codes that have no place there are 500.
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

// ProblemOf makes the problem of an error by the code it wraps. It repeats nothing
// of the error's text, which may name what the caller is not to know.
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

// ParseProblem reads a problem+json body. Members it does not know are ignored, as
// RFC 9457 §3.2 asks: CodeFormat on what is no JSON object.
func ParseProblem(body []byte) (p Problem, err error) {
	if err := json.Unmarshal(body, &p); err != nil {
		return Problem{}, protocol.CodeFormat.Errorf("problem+json: %v", err)
	}
	return p, nil
}

// Err gives the problem as an error that wraps its code, as [Retry] if it says
// when; nil if it has no code.
func (p Problem) Err() error {
	switch {
	case p.Code == 0:
		return nil
	case p.Retry != 0:
		return protocol.Retry{Code: p.Code, After: protocol.Seconds(p.Retry)}
	}
	return p.Code
}
