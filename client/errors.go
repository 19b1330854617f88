package client

import (
	"errors"
	"fmt"
	"time"

	"countersign/client/internal/remote"
	"countersign/internal/durable"
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

// ErrNoReceipt says that there is no receipt of a serial, or that it is no full one
// where a full one is needed.
var ErrNoReceipt = errors.New("no such receipt")

// ErrReceipt says that a full receipt does not verify.
var ErrReceipt = errors.New("receipt does not verify")

// ErrUnknownOutcome is what an [UnknownOutcomeError] is.
var ErrUnknownOutcome = errors.New("outcome is unknown")

// UnknownOutcomeError says that a countersignature may have left and that no
// authentic answer came: the operation may have been carried out. Until the ttl is
// over [Client.Resume] can find out, and [Client.Settle] at any time.
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

// RefusedError is the appliance's refusal in place of a challenge, or to tell what
// became of a serial, authentic.
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

// RetryError is result 2: the password was wrong, and it was not given again, though
// it may be until the ttl is over: see [Client.Resume].
type RetryError struct {
	Serial    protocol.Serial
	TriesLeft uint64
	Cause     error // why it was not given again; nil: no password was asked for
}

func (e *RetryError) Error() string {
	text := fmt.Sprintf("authorization %v: wrong password, %d tries left", e.Serial, e.TriesLeft)
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Unwrap gives protocol.CodePassword, then the cause.
func (e *RetryError) Unwrap() []error {
	if e.Cause == nil {
		return []error{protocol.CodePassword}
	}
	return []error{protocol.CodePassword, e.Cause}
}

// FactorError says that an approval needs a factor that this client was not enrolled
// with, or has no way to ask its user for. Nothing was signed.
type FactorError struct{ Missing protocol.Factors }

func (e *FactorError) Error() string {
	return fmt.Sprintf("this client cannot give factor %v: %v", e.Missing, protocol.CodeLevel)
}

// Unwrap gives protocol.CodeLevel.
func (e *FactorError) Unwrap() error { return protocol.CodeLevel }

// ServerError is an HTTP answer other than 200 while enrolling.
type ServerError = remote.Error
