package client

import (
	"errors"
	"fmt"
	"time"

	"countersign/client/internal/remote"
	"countersign/internal/durable"
	"countersign/protocol"
	"countersign/protocol/receipt"
)

// ErrLocked means that another process has opened the state directory.
var ErrLocked = durable.ErrLocked

// ErrNotEnrolled means that the state has no enrolment.
var ErrNotEnrolled = errors.New("not enrolled")

// ErrEnrolled means that the state already has an enrolment, which another one would overwrite.
var ErrEnrolled = errors.New("already enrolled")

// ErrState means that the state directory has contents that this package did not write.
var ErrState = errors.New("state is damaged")

// ErrNotAuthentic means that the appliance did not make an answer for this request: it is altered,
// replayed or forged.
var ErrNotAuthentic = errors.New("answer is not authentic")

// ErrNothingPending means that no authorization has an unknown outcome.
var ErrNothingPending = errors.New("no authorization has an unknown outcome")

// ErrNoReceipt means that a serial has no receipt, or no full one.
var ErrNoReceipt = errors.New("no such receipt")

// ErrContradicted means that the appliance reports an outcome that another authentic answer, or the user's own refusal,
// rules out: it may have returned from an old copy of its data. The receipt stays as it is.
var ErrContradicted = errors.New("the appliance contradicts the receipt")

// ErrReceipt means that a full receipt is invalid.
var ErrReceipt = errors.New("receipt does not verify")

// ErrUnknownOutcome matches every [UnknownOutcomeError].
var ErrUnknownOutcome = errors.New("outcome is unknown")

// UnknownOutcomeError means that a countersignature may have left and no authentic answer came: the
// operation may have been carried out. [Client.Resume] can find out until the challenge expires, and
// [Client.Settle] at any time.
type UnknownOutcomeError struct {
	Serial protocol.Serial
	Cause  error // the reason; may wrap a protocol.Code
}

func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("authorization %v: %v: %v", e.Serial, ErrUnknownOutcome, e.Cause)
}

// Is reports whether target is [ErrUnknownOutcome].
func (e *UnknownOutcomeError) Is(target error) bool { return target == ErrUnknownOutcome }

// Unwrap returns the cause.
func (e *UnknownOutcomeError) Unwrap() error { return e.Cause }

// DeviceError is an ME, the device's report of a problem. It is advisory and not signed.
type DeviceError struct {
	Code  protocol.Code
	Retry time.Duration // whole seconds; 0: unknown
}

func (e *DeviceError) Error() string {
	if e.Retry != 0 {
		return fmt.Sprintf("the device reports: %v, retry in %v", e.Code, e.Retry)
	}
	return fmt.Sprintf("the device reports: %v", e.Code)
}

// Unwrap returns the code.
func (e *DeviceError) Unwrap() error { return e.Code }

// RefusedError is an authentic refusal by the appliance to make a challenge or to reveal the outcome
// of a serial.
type RefusedError struct {
	Serial  protocol.Serial
	Service protocol.Service
	Code    protocol.Code
	Retry   time.Duration // whole seconds; 0: unknown
}

func (e *RefusedError) Error() string {
	if e.Retry != 0 {
		return fmt.Sprintf("the appliance refuses: %v, retry in %v", e.Code, e.Retry)
	}
	return fmt.Sprintf("the appliance refuses: %v", e.Code)
}

// Unwrap returns the code.
func (e *RefusedError) Unwrap() error { return e.Code }

// RetryError is result 2: the password was wrong and no other followed. [Client.Resume] can try
// another until the challenge expires.
type RetryError struct {
	Serial    protocol.Serial
	TriesLeft uint64
	Cause     error // the reason; nil: no password was asked for
}

func (e *RetryError) Error() string {
	text := fmt.Sprintf("authorization %v: wrong password, %d tries left", e.Serial, e.TriesLeft)
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Unwrap returns protocol.CodePassword, then the cause.
func (e *RetryError) Unwrap() []error {
	if e.Cause == nil {
		return []error{protocol.CodePassword}
	}
	return []error{protocol.CodePassword, e.Cause}
}

// FactorError means that an approval needs a factor that this client was not enrolled with or cannot
// ask the user for. Nothing was signed.
type FactorError struct{ Missing protocol.Factors }

func (e *FactorError) Error() string {
	return fmt.Sprintf("this client cannot provide factor %v: %v", e.Missing, protocol.CodeLevel)
}

// Unwrap returns protocol.CodeLevel.
func (e *FactorError) Unwrap() error { return protocol.CodeLevel }

// ServerError is an HTTP answer other than 200 during enrolment.
type ServerError = remote.Error

// GivenUpError means that a full receipt is signed by a key that was given up as compromised.
type GivenUpError = receipt.GivenUpError
