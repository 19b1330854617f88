package main

import (
	"errors"
	"io/fs"
	"net/http"
	"syscall"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/protocol"
)

// sentinels give the exit codes of errors that are told apart by more than their
// code. The order counts: an unknown outcome is one whatever its cause.
var sentinels = []struct {
	err  error
	code cli.Code
	hint string
}{
	{client.ErrUnknownOutcome, cli.TryAgain, "it may have been carried out: run countersign-client resume --link LINK while its time lasts, " +
		"or countersign-client status --last --link LINK at any time, before you try anew"},
	{client.ErrLocked, cli.TryAgain, "wait for the other countersign-client, or use another --state"},
	{client.ErrNotEnrolled, cli.NotFound, "run countersign-client enrol first, or check --state"},
	{client.ErrNothingPending, cli.NotFound, "countersign-client receipts lists what became of each authorization"},
	{client.ErrNoReceipt, cli.NotFound, "countersign-client receipts lists them; authorize --receipt asks for a full one"},
	{client.ErrReceipt, cli.BadSignature, "do not rely on it"},
	{client.ErrEnrolled, cli.Failed, "use another --state for another enrolment"},
	{client.ErrState, cli.IO, "restore the directory as a whole, or enrol anew with another --state"},
	{client.ErrNotAuthentic, cli.BadSignature, "the device or the link has altered it; nothing was signed"},
}

var exitCodes = map[protocol.Code]cli.Code{
	protocol.CodeStaleKey: cli.TryAgain, protocol.CodeExpired: cli.TryAgain, protocol.CodePending: cli.TryAgain,
	protocol.CodeLinkBusy: cli.TryAgain,

	protocol.CodeRefused: cli.Denied, protocol.CodeSuspended: cli.Denied, protocol.CodeService: cli.Denied,
	protocol.CodeLevel: cli.Denied, protocol.CodePassword: cli.Denied, protocol.CodeLocked: cli.Denied,
	protocol.CodePolicy: cli.Denied, protocol.CodeLimit: cli.Denied, protocol.CodeSerial: cli.Denied,
	protocol.CodeDevice: cli.Denied, protocol.CodeUserRefused: cli.Denied, protocol.CodeFasterLink: cli.Denied,
	protocol.CodeClone: cli.Denied,

	protocol.CodeSignature: cli.BadSignature, protocol.CodeCertificate: cli.BadSignature,
	protocol.CodeReplayed: cli.BadSignature,

	protocol.CodeBusy: cli.Unavailable, protocol.CodeHSM: cli.Unavailable, protocol.CodeServerUnreachable: cli.Unavailable,
	protocol.CodeTimeout: cli.Unavailable, protocol.CodeLink: cli.Unavailable,
}

var hints = map[protocol.Code]string{
	protocol.CodeStaleKey:          "try again; if it stays so, enrol anew",
	protocol.CodeExpired:           "start again, and answer within the time shown",
	protocol.CodeLevel:             "this operation needs more than this client can give, or less than it insists on",
	protocol.CodeService:           "this device does not offer that service now",
	protocol.CodeCertificate:       "this is not the appliance that the activation code is for, or an attack",
	protocol.CodeServerUnreachable: "check that the appliance is running and can be reached",
	protocol.CodeLink:              "check that the device is there and try again",
	protocol.CodeTimeout:           "check that the device is there and try again",
	protocol.CodeLinkBusy:          "somebody else is using the device, try again in a moment",
	protocol.CodePassword:          "start again with the right password; too many wrong ones lock it",
	protocol.CodeLocked:            "wait as long as it says, or have the operator run countersignctl client unlock",
	protocol.CodeHSM:               "tell the operator of the appliance",
}

// explain gives an error its exit code and hint. The zero answer, for what is in no
// table, is code 1.
func explain(err error) error {
	var retry *client.RetryError
	if errors.As(err, &retry) {
		return cli.Fail(cli.TryAgain, err, "run countersign-client resume --link LINK with the right password while its time lasts, or start again")
	}
	var known *cli.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return cli.Fail(s.code, err, s.hint)
		}
	}
	var factor *client.FactorError
	if errors.As(err, &factor) {
		return cli.Fail(cli.Denied, err, "enrol anew in another --state, with a password and --uv as it needs; or refuse it")
	}
	if code, ok := protocol.CodeOf(err); ok {
		return cli.Fail(exitOf(code), err, hints[code])
	}
	var server *client.ServerError
	if errors.As(err, &server) {
		return cli.Fail(exitOfStatus(server.Status), err, "")
	}
	var path *fs.PathError
	var errno syscall.Errno
	if errors.As(err, &path) || errors.As(err, &errno) {
		return cli.Fail(cli.IO, err, "check the directory given with --state")
	}
	return err
}

func exitOf(code protocol.Code) cli.Code {
	if exit, ok := exitCodes[code]; ok {
		return exit
	}
	return cli.Failed
}

func exitOfStatus(status int) cli.Code {
	switch {
	case status == http.StatusNotFound || status == http.StatusGone:
		return cli.NotFound
	case status == http.StatusForbidden:
		return cli.Denied
	case status == http.StatusTooManyRequests || status >= http.StatusInternalServerError:
		return cli.Unavailable
	}
	return cli.Failed
}
