// Command countersign-client is the reference client: it does what a phone does,
// from a shell.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/protocol"
)

// harden is for what the system at hand offers.
var harden = func() {}

func main() {
	harden()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, newRoot(os.Getenv), cli.Process{
		Args: args, Stdin: stdin, Stdout: stdout, Stderr: stderr, Getenv: os.Getenv,
	})
}

// app is what the commands share.
type app struct {
	dir    string
	format *cli.Format
}

func newRoot(getenv func(string) string) *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "countersign-client",
		Short: "Authorize at a device, without a network",
		Long: "countersign-client is the reference client of OA1, as a phone would be: it enrols once over the network\n" +
			"and then authorizes over the near-field link of a device alone.",
	}
	root.PersistentFlags().StringVar(&a.dir, "state", defaultState(getenv), "directory of the client's state")
	a.format = cli.AddOutputFlag(root)
	root.AddCommand(a.enrolCommand(), a.authorizeCommand(), a.approveCommand(), a.dryRunCommand(), a.resumeCommand(),
		a.receiptsCommand(), a.statusCommand())
	return root
}

// defaultState follows the XDG base directory specification; "" where there is
// no home.
func defaultState(getenv func(string) string) string {
	if base := getenv("XDG_DATA_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "countersign-client")
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "share", "countersign-client")
	}
	return ""
}

// open opens the state. A command that only looks does not wait for one that works.
func (a *app) open(ctx context.Context, cfg client.Config) (*client.Client, error) {
	if a.dir == "" {
		return nil, cli.Fail(cli.Usage, fmt.Errorf("no directory for the state"), "give one with --state")
	}
	cfg.Dir = a.dir
	c, err := client.Open(ctx, cfg)
	return c, explain(err)
}

func (a *app) printer(cmd *cobra.Command) cli.Printer {
	return cli.Printer{Out: cmd.OutOrStdout(), Format: *a.format}
}

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
