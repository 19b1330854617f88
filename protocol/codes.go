package protocol

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Code is a result code of PROTOCOL.md §4, as it travels in P2, P4, ME and
// problem+json. It is an error, so that it can be wrapped and found again with
// [CodeOf]. Zero means no error.
type Code uint8

// The codes. Where each appears is in the table of PROTOCOL.md §4.
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
	CodeServerUnreachable Code = 32
	CodeTimeout           Code = 33
	CodeLink              Code = 34
	CodeLinkBusy          Code = 35
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
	CodeServerUnreachable: "server unreachable",
	CodeTimeout:           "timeout",
	CodeLink:              "link",
	CodeLinkBusy:          "link busy",
}

func (c Code) String() string {
	if s, ok := codeText[c]; ok {
		return s
	}
	return "code " + strconv.Itoa(int(c))
}

func (c Code) Error() string { return c.String() }

// CodeOf finds the code that an error wraps; ok is false where there is none.
func CodeOf(err error) (code Code, ok bool) {
	ok = errors.As(err, &code)
	return code, ok
}

// Retry is an error whose code comes with the time after which another try makes
// sense; it travels in whole seconds, rounded up.
type Retry struct {
	Code  Code
	After time.Duration
}

func (r Retry) Error() string { return fmt.Sprintf("%v, retry in %v", r.Code, r.After) }

// Unwrap makes [CodeOf] find the code.
func (r Retry) Unwrap() error { return r.Code }

// Errorf returns an error of this text that wraps the code.
func (c Code) Errorf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, c)...)
}

// Seconds converts a number of seconds, as large as it may be, to a duration
// without overflow.
func Seconds(n uint64) time.Duration {
	const most = uint64(1<<63-1) / uint64(time.Second)
	return time.Duration(min(n, most)) * time.Second
}
