// Command countersignctl administers an appliance over its admin socket: countersignctl <noun> <verb>. The appliance
// makes all decisions.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	p := cli.Process{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
	os.Exit(cli.Main(ctx, root(), p))
}

// tool has the flags of every command.
type tool struct {
	address string
	format  *cli.Format
}

func root() *cobra.Command {
	t := &tool{}
	cmd := &cobra.Command{Use: "countersignctl", Short: "Administer a Countersign appliance"}
	cmd.PersistentFlags().StringVar(&t.address, "admin", "unix:var/admin.sock", "admin socket of the appliance, unix:PATH")
	t.format = cli.AddOutputFlag(cmd)
	status := &cobra.Command{
		Use: "status", Args: cobra.NoArgs, Short: "Show trust domain, policy, HSM and the number of records in the store",
		RunE: show(t, statusTable, adminapi.Routes.Status),
	}
	cmd.AddCommand(
		status, t.client(), t.device(), t.key(), t.hsm(), t.admin(), t.change(), t.policy(), t.store(), t.audit(),
	)
	return cmd
}

func (t *tool) caller() (*adminapi.Caller, error) {
	address, err := config.ParseAddress(t.address)
	if err != nil {
		return nil, cli.Fail(cli.Usage, fmt.Errorf("--admin: %w", err), "for example --admin unix:/var/lib/countersign/admin.sock")
	}
	return adminapi.NewCaller(address.Network(), address.Target()), nil
}

func (t *tool) printer(cmd *cobra.Command) cli.Printer {
	return cli.Printer{Out: cmd.OutOrStdout(), Format: *t.format}
}

// send sends a request to the appliance. Its errors have exit codes and hints.
func send[Req, Res any](
	t *tool, cmd *cobra.Command, route adminapi.Route[Req, Res], body Req, names ...string,
) (answer Res, err error) {
	c, err := t.caller()
	if err != nil {
		return answer, err
	}
	answer, err = route.Call(cmd.Context(), c, body, names...)
	return answer, explain(err)
}

// action is the function of a command.
type action = func(*cobra.Command, []string) error

// show calls a route with the arguments of the command and prints the answer.
func show[T any](t *tool, table cli.Table[T], route adminapi.Route[adminapi.None, T]) action {
	return func(cmd *cobra.Command, args []string) error {
		value, err := send(t, cmd, route, adminapi.None{}, args...)
		if err != nil {
			return err
		}
		return table.One(t.printer(cmd), value)
	}
}

// list is show for an answer of many values.
func list[T any](t *tool, table cli.Table[T], route adminapi.Route[adminapi.None, []T]) action {
	return func(cmd *cobra.Command, args []string) error {
		values, err := send(t, cmd, route, adminapi.None{}, args...)
		if err != nil {
			return err
		}
		return table.List(t.printer(cmd), values)
	}
}

func (t *tool) audit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read the audit records"}
	var after uint64
	var limit int
	tail := &cobra.Command{
		Use: "tail", Args: cobra.NoArgs, Short: "List audit records, oldest first",
		RunE: func(cmd *cobra.Command, args []string) error {
			route := adminapi.Routes.Audit.With("after", strconv.FormatUint(after, 10)).With("limit", strconv.Itoa(limit))
			return list(t, recordTable, route)(cmd, args)
		},
	}
	tail.Flags().Uint64Var(&after, "after", 0, "only records after this sequence number")
	tail.Flags().IntVar(&limit, "limit", 1000, "maximum number of records (1–1000)")
	cmd.AddCommand(tail)
	return cmd
}

// confirm asks the user to type a name.
func confirm(cmd *cobra.Command, question, name string) error {
	ok, err := cli.TerminalOf(cmd).ConfirmName(question, name)
	if err == nil && !ok {
		err = cli.Fail(cli.Failed, fmt.Errorf("%s: nothing was changed", name), "type its name to confirm, or give --yes")
	}
	return err
}

// problems is the table from error answers to exit codes and hints.
var problems = map[string]struct {
	code cli.Code
	hint string
}{
	adminapi.ProblemNotFound:    {cli.NotFound, "list shows the names of each noun: client, device, key, admin, change"},
	adminapi.ProblemKeyStep:     {cli.Failed, "countersignctl key list shows the state of each version; retire --early does not wait"},
	adminapi.ProblemUnsupported: {cli.Unavailable, "pkcs11-tool -O shows the attributes meanwhile"},
	adminapi.ProblemQuorum:      {cli.Denied, "countersignctl change list shows the requests that wait"},
	adminapi.ProblemOver:        {cli.Denied, "request the change again: a request is executed at most once"},
	adminapi.ProblemSigner:      {cli.Denied, "countersignctl admin list shows who may countersign"},
	adminapi.ProblemSignature: {
		cli.BadSignature, "sign the document that countersignctl change export prints, as CHANGE.md describes",
	},
	adminapi.ProblemUncovered: {
		cli.Failed, "a key is sealed only when it is generated: set backup.recipient, then rotate these keys; --partial leaves them out",
	},
	adminapi.ProblemExists:      {cli.Failed, "%s is enrolled or has an open code: --replace revokes it and makes a new one"},
	adminapi.ProblemConflict:    {cli.Failed, ""},
	adminapi.ProblemInput:       {cli.Usage, ""},
	adminapi.ProblemUnavailable: {cli.Unavailable, "countersignctl hsm status shows whether it is the HSM"},
	adminapi.ProblemPIN: {
		cli.Auth, "the token counts wrong PINs; run countersignctl hsm unlock again with the right one",
	},
	adminapi.ProblemLocked: {cli.Unavailable, "run countersignctl hsm unlock"},
}

// explain gives an error of the admin API its exit code and hint.
func explain(err error) error {
	var e *adminapi.Error
	switch {
	case errors.Is(err, adminapi.ErrUnanswered):
		return cli.Fail(cli.Unavailable, err, "is countersignd running, and is --admin its socket?")
	case !errors.As(err, &e):
		return err
	}
	row, ok := problems[e.Type]
	switch {
	case !ok:
		row.code = cli.Failed
	case e.Type == adminapi.ProblemExists && len(e.Names) > 0:
		row.hint = fmt.Sprintf(row.hint, e.Names[0])
	case e.Type == adminapi.ProblemQuorum && e.Change != nil:
		row.hint = "countersignctl change sign " + e.Change.ID + ", with --key or --pkcs11"
	}
	return cli.Fail(row.code, err, row.hint)
}
