package client

import (
	"errors"
	"fmt"
	"time"

	"countersign/client/internal/durable"
	"countersign/protocol"
)

// ErrLocked says that another process has the state directory open.
var ErrLocked = durable.ErrLocked

// ErrNotEnrolled says that the state holds no enrolment yet.
var ErrNotEnrolled = errors.New("not enrolled")

// ErrEnrolled says that the state holds an enrolment already, which another one
// would overwrite.
var ErrEnrolled = errors.New("already enrolled")

// ErrState says that the state directory holds something this package did not
// write, or not in this way.
var ErrState = errors.New("state is damaged")

// ErrNotAuthentic says that an answer on the link was not made by the appliance for
// this request: altered, replayed or forged.
var ErrNotAuthentic = errors.New("answer is not authentic")

// ErrNothingPending says that there is no authorization whose outcome is unknown.
var ErrNothingPending = errors.New("no authorization has an unknown outcome")

// ErrUnknownOutcome is what an [UnknownOutcomeError] is.
var ErrUnknownOutcome = errors.New("outcome is unknown")

// UnknownOutcomeError says that a countersignature may have left and that no
// authentic answer came: the operation may have been carried out. Until the ttl is
// over [Client.Resume] can find out.
type UnknownOutcomeError struct {
	Serial protocol.Serial
	Cause  error // why there is no answer; may wrap a protocol.Code
}

func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("authorization %v: %v: %v", e.Serial, ErrUnknownOutcome, e.Cause)
}

// Is makes it [ErrUnknownOutcome].
func (e *UnknownOutcomeError) Is(target error) bool { return target == ErrUnknownOutcome }

// Unwrap gives the cause.
func (e *UnknownOutcomeError) Unwrap() error { return e.Cause }

// DeviceError is an ME, the device's word that something went wrong. Nobody signed
// it: it is advice.
type DeviceError struct {
	Code  protocol.Code
	Retry time.Duration // whole seconds; 0: not said
}

func (e *DeviceError) Error() string {
	if e.Retry != 0 {
		return fmt.Sprintf("the device reports: %v, retry in %v", e.Code, e.Retry)
	}
	return fmt.Sprintf("the device reports: %v", e.Code)
}

// Unwrap gives the code.
func (e *DeviceError) Unwrap() error { return e.Code }

// RefusedError is the appliance's refusal in place of a challenge, authentic.
type RefusedError struct {
	Serial  protocol.Serial
	Service protocol.Service
	Code    protocol.Code
	Retry   time.Duration // whole seconds; 0: not said
}

func (e *RefusedError) Error() string {
	if e.Retry != 0 {
		return fmt.Sprintf("the appliance refuses: %v, retry in %v", e.Code, e.Retry)
	}
	return fmt.Sprintf("the appliance refuses: %v", e.Code)
}

// Unwrap gives the code.
func (e *RefusedError) Unwrap() error { return e.Code }

// RetryError is result 2: the password was wrong and may be given again.
type RetryError struct {
	Serial    protocol.Serial
	TriesLeft uint64
}

func (e *RetryError) Error() string {
	return fmt.Sprintf("authorization %v: wrong password, %d tries left", e.Serial, e.TriesLeft)
}

// Unwrap gives protocol.CodePassword.
func (e *RetryError) Unwrap() error { return protocol.CodePassword }

// ServerError is an HTTP answer other than 200 while enrolling.
type ServerError struct {
	Status  int // HTTP status
	Problem protocol.Problem
}

func (e *ServerError) Error() string {
	text := fmt.Sprintf("the appliance answers %d", e.Status)
	for _, part := range []string{e.Problem.Title, e.Problem.Detail} {
		if part != "" {
			text += ": " + fmt.Sprintf("%.200q", part)
		}
	}
	return text
}

// Unwrap gives the problem's code, if it has one.
func (e *ServerError) Unwrap() error { return e.Problem.Err() }
