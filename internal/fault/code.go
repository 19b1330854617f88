// Package fault is the table of errors that have a hint or an exit code: what a program prints, the exit code, the
// cause and what to do. All programs take their hints and exit codes from it, and go generate ./internal/fault writes
// docs/errors.md from it.
//
// To add a row, declare a variable with [topic.row] in the file of the program, or in shared.go, and return
// fault.NAME.Of(err) where the error stops. Then run go generate ./internal/fault. A hint never advises to delete,
// initialize or overwrite what may be the last copy of a key, a database or an anchor.
package fault

import "strconv"

// Code is an exit code. The codes are an API: scripts rely on them.
type Code int

// The exit codes.
const (
	OK           Code = 0
	Failed       Code = 1   // anything without a more specific code
	Usage        Code = 2   // the command line is wrong
	Denied       Code = 3   // denied by policy
	BadSignature Code = 4   // a signature or a seal does not verify
	NotFound     Code = 5   // no such key, client, record, …
	Unavailable  Code = 69  // HSM, store, appliance or device cannot be reached
	IO           Code = 74  // reading or writing failed
	TryAgain     Code = 75  // may succeed later without a change
	Auth         Code = 77  // a PIN, password, passphrase or activation code is missing or was refused
	Config       Code = 78  // the configuration is wrong
	Interrupted  Code = 130 // SIGINT or SIGTERM ended the command
)

// codes lists the exit codes with name and meaning, in the order of the documentation.
var codes = []struct {
	Code
	name, meaning string
}{
	{OK, "ok", "It did what was asked."},
	{Failed, "failed", "It failed for a reason without a more specific code."},
	{Usage, "usage", "The command line or a request is wrong. Nothing was changed."},
	{Denied, "denied", "The policy, a person or a quorum denies it."},
	{BadSignature, "bad-signature", "A signature, certificate or seal does not verify. Do not rely on the data."},
	{NotFound, "not-found", "There is no such key, client, device, record or receipt."},
	{Unavailable, "unavailable", "The HSM, the store, the appliance or the device cannot be reached."},
	{IO, "io", "A file, a disk or an output cannot be read or written."},
	{TryAgain, "try-again", "The same command may succeed later. A change may be waiting, or its outcome unknown."},
	{Auth, "auth", "A PIN, password, passphrase or activation code is missing or was refused."},
	{Config, "config", "The configuration is wrong."},
	{Interrupted, "interrupted", "SIGINT or SIGTERM ended the command."},
}

// String returns the code's name, or its number if it has none.
func (c Code) String() string {
	for _, known := range codes {
		if known.Code == c {
			return known.name
		}
	}
	return strconv.Itoa(int(c))
}
