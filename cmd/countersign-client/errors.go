package main

import (
	"errors"
	"io/fs"
	"net/http"
	"strconv"
	"syscall"

	"countersign/client"
	"countersign/internal/fault"
	"countersign/protocol"
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// sentinels maps errors that say more than a code of the protocol. An unknown outcome is the first: it stays one for
// any cause.
var sentinels = fault.Sentinels{
	{client.ErrUnknownOutcome, fault.UnknownOutcome},
	{client.ErrLocked, fault.ClientStateInUse},
	{client.ErrNotEnrolled, fault.NotEnrolled},
	{client.ErrNothingPending, fault.NothingPending},
	{client.ErrNoReceipt, fault.NoReceipt},
	{client.ErrContradicted, fault.Contradicted},
	{client.ErrReceipt, fault.BadReceipt},
	{client.ErrEnrolled, fault.ClientEnrolled},
	{client.ErrState, fault.StateDamaged},
	{client.ErrNotAuthentic, fault.NotAuthentic},
}

// results are the rows of the protocol's codes.
var results = map[protocol.Code]fault.Row{
	protocol.CodeFormat:            fault.CodeFormat,
	protocol.CodeVersion:           fault.CodeVersion,
	protocol.CodeStaleKey:          fault.CodeStaleKey,
	protocol.CodeRefused:           fault.CodeRefused,
	protocol.CodeSuspended:         fault.CodeSuspended,
	protocol.CodeService:           fault.CodeService,
	protocol.CodeLevel:             fault.CodeLevel,
	protocol.CodeExpired:           fault.CodeExpired,
	protocol.CodeSignature:         fault.CodeSignature,
	protocol.CodePassword:          fault.CodePassword,
	protocol.CodeLocked:            fault.CodeLocked,
	protocol.CodePolicy:            fault.CodePolicy,
	protocol.CodeLimit:             fault.CodeLimit,
	protocol.CodeSerial:            fault.CodeSerial,
	protocol.CodeDevice:            fault.CodeDevice,
	protocol.CodeBusy:              fault.CodeBusy,
	protocol.CodeHSM:               fault.CodeHSM,
	protocol.CodeUserRefused:       fault.CodeUserRefused,
	protocol.CodeCertificate:       fault.CodeCertificate,
	protocol.CodeFasterLink:        fault.CodeFasterLink,
	protocol.CodePending:           fault.CodePending,
	protocol.CodeReplayed:          fault.CodeReplayed,
	protocol.CodeClone:             fault.CodeClone,
	protocol.CodeAmountDiffers:     fault.CodeAmountDiffers,
	protocol.CodeAmountMissing:     fault.CodeAmountMissing,
	protocol.CodeOwnApproval:       fault.CodeOwnApproval,
	protocol.CodeTextDiffers:       fault.CodeTextDiffers,
	protocol.CodeAmountNotAllowed:  fault.CodeAmountNotAllowed,
	protocol.CodeServerUnreachable: fault.CodeServerUnreachable,
	protocol.CodeTimeout:           fault.CodeTimeout,
	protocol.CodeLink:              fault.CodeLink,
	protocol.CodeLinkBusy:          fault.CodeLinkBusy,
	protocol.CodeNothingToApprove:  fault.CodeNothingToApprove,
}

// rowOf returns the row of a code.
func rowOf(code protocol.Code) fault.Row {
	if row, ok := results[code]; ok {
		return row
	}
	return fault.CodeUnknown.With("number", strconv.Itoa(int(code)))
}

// explain adds the exit code and the hint to an error of the client.
func explain(err error) error {
	var retry *client.RetryError
	var known *fault.Error
	switch {
	case errors.As(err, &retry):
		return fault.WrongTry.Of(err)
	case err == nil || errors.As(err, &known):
		return err
	}
	for _, find := range []func(error) (fault.Row, bool){sentinels.Find, detailed, coded, uncoded} {
		if row, ok := find(err); ok {
			return row.Of(err)
		}
	}
	return err
}

// detailed returns the row of an error that has more than a code of the protocol.
func detailed(err error) (row fault.Row, ok bool) {
	var (
		short  *password.ShortError
		factor *client.FactorError
		given  *client.GivenUpError
		server *client.ServerError
		dated  *trust.DateError
	)
	switch {
	case errors.As(err, &short):
		return fault.ShortPassword, true
	case errors.As(err, &factor):
		return fault.FactorMissing, true
	case errors.As(err, &given):
		return fault.GivenUpReceipt, true
	case errors.As(err, &server) && server.Status == http.StatusForbidden:
		return fault.EnrolRefused, true // its code 4 would say that this client is not served
	case errors.As(err, &dated):
		row = fault.PhoneClock
		row.Exit = rowOf(dated.Code).Exit
		return row, true
	}
	return row, false
}

// coded returns the row of a code of the protocol.
func coded(err error) (row fault.Row, ok bool) {
	code, ok := protocol.CodeOf(err)
	if !ok {
		return row, false
	}
	row = rowOf(code)
	var refused *client.RefusedError
	switch {
	case !errors.As(err, &refused):
	case refused.Service == protocol.ServiceCoApproval && code == protocol.CodeService:
		row = fault.NoRequestWaits
	case row.Exit == fault.Failed:
		row.Exit = fault.Denied // by a code that this client does not know
	}
	return row, true
}

// uncoded returns the row of an answer without a code, or of a file that cannot be used.
func uncoded(err error) (row fault.Row, ok bool) {
	var server *client.ServerError
	var path *fs.PathError
	var errno syscall.Errno
	switch {
	case errors.As(err, &server):
		return rowOfStatus(server.Status), true
	case errors.As(err, &path), errors.As(err, &errno):
		return fault.StateFile, true
	}
	return row, false
}

// rowOfStatus returns the row of an HTTP status other than 403, without a code of the protocol.
func rowOfStatus(status int) fault.Row {
	switch {
	case status == http.StatusNotFound || status == http.StatusGone:
		return fault.EnrolGone
	case status == http.StatusTooManyRequests || status >= http.StatusInternalServerError:
		return fault.EnrolBusy
	}
	return fault.EnrolFailed
}
