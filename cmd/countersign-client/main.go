// Command countersign-client is the reference client. It does in a shell what a phone does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/internal/harden"
	"countersign/protocol"
	"countersign/protocol/trust"
)

func main() {
	_ = harden.Process() // as far as the operating system allows
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := cli.UntilSignal()
	defer stop()
	return cli.Main(ctx, newRoot(os.Getenv), cli.Process{
		Args: args, Stdin: stdin, Stdout: stdout, Stderr: stderr, Getenv: os.Getenv,
	})
}

// app is the common state of the commands.
type app struct {
	dir    string
	format *cli.Format
}

func newRoot(getenv func(string) string) *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "countersign-client",
		Short: "Authorize at a device without a network",
		Long: "countersign-client is the reference client of OA1 and acts as a phone: it enrols once over the network and\n" +
			"then authorizes over the near-field link of a device alone.",
	}
	root.PersistentFlags().StringVar(&a.dir, "state", defaultState(getenv), "state directory of the client")
	a.format = cli.AddOutputFlag(root)
	root.AddCommand(a.enrolCommand(), a.authorizeCommand(), a.approveCommand(), a.dryRunCommand(), a.resumeCommand(),
		a.receiptsCommand(), a.statusCommand())
	return root
}

// defaultState follows the XDG base directory specification. It returns "" without a home directory.
func defaultState(getenv func(string) string) string {
	if base := getenv("XDG_DATA_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "countersign-client")
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "share", "countersign-client")
	}
	return ""
}

// open opens the state. Read-only commands do not wait for the lock.
func (a *app) open(ctx context.Context, cfg client.Config) (*client.Client, error) {
	if a.dir == "" {
		return nil, cli.Fail(cli.Usage, fmt.Errorf("no state directory"), "use --state")
	}
	cfg.Dir = a.dir
	c, err := client.Open(ctx, cfg)
	return c, explain(err)
}

func (a *app) printer(cmd *cobra.Command) cli.Printer {
	return cli.Printer{Out: cmd.OutOrStdout(), Format: *a.format}
}

// sentinels map errors to exit codes by more than their protocol code. The order matters: an unknown
// outcome stays one for any cause.
var sentinels = []struct {
	err  error
	code cli.Code
	hint string
}{
	{client.ErrUnknownOutcome, cli.TryAgain, "it may have been carried out: run countersign-client resume --link LINK while the challenge is valid, " +
		"or countersign-client status --last --link LINK at any time, before you try again"},
	{client.ErrLocked, cli.TryAgain, "wait for the other countersign-client, or use another --state"},
	{client.ErrNotEnrolled, cli.NotFound, "run countersign-client enrol first, or check --state"},
	{client.ErrNothingPending, cli.NotFound, "countersign-client receipts lists all outcomes"},
	{client.ErrNoReceipt, cli.NotFound, "countersign-client receipts lists them; authorize --receipt requests a full one"},
	{client.ErrContradicted, cli.Failed, "inform the operator: the appliance may have returned from an old copy of its data"},
	{client.ErrReceipt, cli.BadSignature, "do not rely on this receipt"},
	{client.ErrEnrolled, cli.Failed, "use another --state for another enrolment"},
	{client.ErrState, cli.IO, "restore the whole directory, or enrol again with another --state"},
	{client.ErrNotAuthentic, cli.BadSignature, "the device or the link altered the message; nothing was signed"},
}

var exitCodes = map[protocol.Code]cli.Code{
	protocol.CodeStaleKey: cli.TryAgain, protocol.CodeExpired: cli.TryAgain, protocol.CodePending: cli.TryAgain,
	protocol.CodeLinkBusy: cli.TryAgain, protocol.CodeNothingToApprove: cli.TryAgain,

	protocol.CodeRefused: cli.Denied, protocol.CodeSuspended: cli.Denied, protocol.CodeService: cli.Denied,
	protocol.CodeLevel: cli.Denied, protocol.CodePassword: cli.Denied, protocol.CodeLocked: cli.Denied,
	protocol.CodePolicy: cli.Denied, protocol.CodeLimit: cli.Denied, protocol.CodeSerial: cli.Denied,
	protocol.CodeDevice: cli.Denied, protocol.CodeUserRefused: cli.Denied, protocol.CodeFasterLink: cli.Denied,
	protocol.CodeClone: cli.Denied, protocol.CodeAmountDiffers: cli.Denied, protocol.CodeAmountMissing: cli.Denied,
	protocol.CodeOwnApproval: cli.Denied, protocol.CodeTextDiffers: cli.Denied,

	protocol.CodeSignature: cli.BadSignature, protocol.CodeCertificate: cli.BadSignature,
	protocol.CodeReplayed: cli.BadSignature,

	protocol.CodeBusy: cli.Unavailable, protocol.CodeHSM: cli.Unavailable, protocol.CodeServerUnreachable: cli.Unavailable,
	protocol.CodeTimeout: cli.Unavailable, protocol.CodeLink: cli.Unavailable,
}

var hints = map[protocol.Code]string{
	protocol.CodeStaleKey:          "try again; if that fails too, enrol again",
	protocol.CodeExpired:           "start again, and answer within the time shown",
	protocol.CodeLevel:             "the required level is above what this client can provide, or below what it accepts",
	protocol.CodeService:           "the device does not offer this service now",
	protocol.CodeCertificate:       "this is not the appliance that the activation code is for, or an attack",
	protocol.CodeServerUnreachable: "check that the appliance is running and can be reached",
	protocol.CodeLink:              "check that the device is in reach and try again",
	protocol.CodeTimeout:           "check that the device is in reach and try again",
	protocol.CodeLinkBusy:          "another client is using the device; try again in a moment",
	protocol.CodeNothingToApprove:  "the device has no order yet: have it placed at the device, then try again",
	protocol.CodeDevice:            "the appliance does not serve this device: use another one, and inform the operator of this one",
	protocol.CodePolicy: "the policy does not allow this, or it or the sum of your approvals has changed: " +
		"start again, and ask the operator if it is denied again",
	protocol.CodeAmountDiffers: "the device asks for another amount than you gave: agree on the amount, then start again",
	protocol.CodeAmountMissing: "neither you nor the device gave an amount: start again with --amount",
	protocol.CodeTextDiffers:   "the device gives another text than you did: start again without --text, and read what it shows",
	protocol.CodeOwnApproval:   "this is your own request: another person with the role has to approve it",
	protocol.CodePassword:      "start again with the right password; too many wrong ones lock the client",
	protocol.CodeLocked:        "wait for the time shown, or ask the operator to run countersignctl client unlock",
	protocol.CodeHSM:           "inform the operator of the appliance",
}

// explain adds the exit code and hint to an error. Unlisted errors exit with 1.
func explain(err error) error {
	var retry *client.RetryError
	if errors.As(err, &retry) {
		return cli.Fail(cli.TryAgain, err, "run countersign-client resume --link LINK with the right password while the challenge is valid, or start again")
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
		return cli.Fail(cli.Denied, err, "enrol again with another --state, with a password or --uv as required, or refuse")
	}
	var given *client.GivenUpError
	if errors.As(err, &given) {
		return cli.Fail(cli.BadSignature, err, "another party may have signed it: ask the operator of the appliance whether its records have it")
	}
	var dated *trust.DateError
	if errors.As(err, &dated) {
		return cli.Fail(exitOf(dated.Code), err, "check the date and time of this machine and try again; if they are right, "+
			"check those of the appliance")
	}
	if code, ok := protocol.CodeOf(err); ok {
		exit, hint := exitOf(code), hints[code]
		var refused *client.RefusedError
		isRefused := errors.As(err, &refused)
		if exit == cli.Failed && isRefused {
			exit = cli.Denied // by a code that this client does not know
		}
		if isRefused && refused.Service == protocol.ServiceCoApproval && code == protocol.CodeService {
			hint = "no request waits for a second person at this device"
		}
		return cli.Fail(exit, err, hint)
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
