// Command countersign-client is the reference client. It does in a shell what a phone does.
package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/internal/harden"
	"countersign/protocol"
	"countersign/protocol/password"
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
		return nil, fault.NoState.Error()
	}
	cfg.Dir = a.dir
	c, err := client.Open(ctx, cfg)
	return c, explain(err)
}

func (a *app) printer(cmd *cobra.Command) cli.Printer {
	return cli.Printer{Out: cmd.OutOrStdout(), Format: *a.format}
}

// sentinels map errors to rows of the table of errors, which say more than their protocol code. The order matters: an
// unknown outcome stays one for any cause.
var sentinels = []struct {
	err error
	row fault.Row
}{
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

// explain adds the exit code and hint to an error. Unlisted errors exit with 1.
func explain(err error) error {
	var retry *client.RetryError
	if errors.As(err, &retry) {
		return fault.WrongTry.Of(err)
	}
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return s.row.Of(err)
		}
	}
	var short *password.ShortError
	if errors.As(err, &short) {
		return fault.ShortPassword.Of(err)
	}
	var factor *client.FactorError
	if errors.As(err, &factor) {
		return fault.FactorMissing.Of(err)
	}
	var given *client.GivenUpError
	if errors.As(err, &given) {
		return fault.GivenUpReceipt.Of(err)
	}
	var server *client.ServerError
	if errors.As(err, &server) && server.Status == http.StatusForbidden {
		return fault.EnrolRefused.Of(err) // its code 4 would say that this client is not served
	}
	var dated *trust.DateError
	if errors.As(err, &dated) {
		row := fault.PhoneClock
		row.Exit = rowOf(dated.Code).Exit
		return row.Of(err)
	}
	if code, ok := protocol.CodeOf(err); ok {
		row := rowOf(code)
		var refused *client.RefusedError
		isRefused := errors.As(err, &refused)
		if isRefused && refused.Service == protocol.ServiceCoApproval && code == protocol.CodeService {
			row = fault.NoRequestWaits
		}
		if isRefused && row.Exit == fault.Failed {
			row.Exit = fault.Denied // by a code that this client does not know
		}
		return row.Of(err)
	}
	if server != nil {
		return rowOfStatus(server.Status).Of(err)
	}
	var path *fs.PathError
	var errno syscall.Errno
	if errors.As(err, &path) || errors.As(err, &errno) {
		return fault.StateFile.Of(err)
	}
	return err
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
