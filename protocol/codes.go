package protocol

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// Code is a result code of PROTOCOL.md §4, as P2, P4, ME and problem+json carry it. It is an error
// that others can wrap and [CodeOf] finds. Zero means no error.
type Code uint8

// The codes. The table of PROTOCOL.md §4 lists where each appears.
const (
	CodeFormat            Code = 1
	CodeVersion           Code = 2
	CodeStaleKey          Code = 3
	CodeRefused           Code = 4
	CodeSuspended         Code = 5
	CodeService           Code = 6
	CodeLevel             Code = 7
	CodeExpired           Code = 8
	CodeSignature         Code = 9
	CodePassword          Code = 10
	CodeLocked            Code = 11
	CodePolicy            Code = 12
	CodeLimit             Code = 13
	CodeSerial            Code = 14
	CodeDevice            Code = 15
	CodeBusy              Code = 16
	CodeHSM               Code = 17
	CodeUserRefused       Code = 18
	CodeCertificate       Code = 19
	CodeFasterLink        Code = 20
	CodePending           Code = 21
	CodeReplayed          Code = 22
	CodeClone             Code = 23
	CodeAmountDiffers     Code = 24
	CodeAmountMissing     Code = 25
	CodeOwnApproval       Code = 26
	CodeTextDiffers       Code = 27
	CodeAmountNotAllowed  Code = 28
	CodeServerUnreachable Code = 32
	CodeTimeout           Code = 33
	CodeLink              Code = 34
	CodeLinkBusy          Code = 35
	CodeNothingToApprove  Code = 36
)

var codeText = map[Code]string{
	CodeFormat:            "format",
	CodeVersion:           "version or suite",
	CodeStaleKey:          "stale key",
	CodeRefused:           "refused",
	CodeSuspended:         "suspended",
	CodeService:           "service not allowed",
	CodeLevel:             "level not available",
	CodeExpired:           "handle dead or challenge expired",
	CodeSignature:         "bad countersignature",
	CodePassword:          "bad password",
	CodeLocked:            "locked",
	CodePolicy:            "policy",
	CodeLimit:             "limit",
	CodeSerial:            "serial conflict",
	CodeDevice:            "device not authorized",
	CodeBusy:              "busy",
	CodeHSM:               "HSM unavailable",
	CodeUserRefused:       "user refused",
	CodeCertificate:       "certificate",
	CodeFasterLink:        "needs a faster link",
	CodePending:           "awaiting second approver",
	CodeReplayed:          "replayed decision",
	CodeClone:             "clone alarm",
	CodeAmountDiffers:     "amount differs",
	CodeAmountMissing:     "amount missing",
	CodeOwnApproval:       "own approval",
	CodeTextDiffers:       "text differs",
	CodeAmountNotAllowed:  "amount not allowed",
	CodeServerUnreachable: "server unreachable",
	CodeTimeout:           "timeout",
	CodeLink:              "link",
	CodeLinkBusy:          "link busy",
	CodeNothingToApprove:  "nothing to approve",
}

// Codes returns every code that has a meaning, in ascending order.
func Codes() []Code { return slices.Sorted(maps.Keys(codeText)) }

func (c Code) String() string {
	if s, ok := codeText[c]; ok {
		return s
	}
	return "code " + strconv.Itoa(int(c))
}

func (c Code) Error() string { return c.String() }

// CodeOf returns the code that an error wraps; ok is false if there is none.
func CodeOf(err error) (code Code, ok bool) {
	ok = errors.As(err, &code)
	return code, ok
}

// Retry is an error with a code and the time to wait before the next attempt. It travels in whole
// seconds, rounded up.
type Retry struct {
	Code  Code
	After time.Duration
}

func (r Retry) Error() string { return fmt.Sprintf("%v, retry in %v", r.Code, r.After) }

// Unwrap returns the code.
func (r Retry) Unwrap() error { return r.Code }

// Errorf returns an error with this text that wraps the code.
func (c Code) Errorf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, c)...)
}

// Seconds converts seconds to a duration. Values that would overflow become the longest duration.
func Seconds(n uint64) time.Duration {
	const most = uint64(1<<63-1) / uint64(time.Second)
	return time.Duration(min(n, most)) * time.Second
}
