// Command countersignctl administers an appliance over its admin socket: countersignctl <noun> <verb>. The appliance
// makes all decisions.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"countersign/appliance/adminapi"
	"countersign/appliance/adminapi/problem"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/internal/harden"
)

func main() {
	_ = harden.Process() // as far as the operating system allows
	ctx, stop := cli.UntilSignal()
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
	cmd.SetFlagErrorFunc(flagError)
	t.format = cli.AddOutputFlag(cmd)
	status := verb("status", "Show trust domain, policy, HSM and the number of records in the store", show(t, statusTable, adminapi.Routes.Status))
	cmd.AddCommand(
		status, t.client(), t.device(), t.key(), t.hsm(), t.admin(), t.change(), t.policy(), t.store(), t.audit(),
	)
	return cmd
}

func (t *tool) caller() (*adminapi.Caller, error) {
	address, err := config.ParseAddress(t.address)
	if err == nil && address.Network() != "unix" {
		err = fmt.Errorf("address %q: the admin API has a Unix socket only: want unix:PATH", t.address)
	}
	if err != nil {
		return nil, fault.AdminAddress.Of(err)
	}
	return adminapi.NewCaller(address.Target()), nil
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

// verb returns a command. Its use is its name and its positional arguments, then perhaps flags that it needs.
func verb(use, short string, run action) *cobra.Command {
	words, _, _ := strings.Cut(use, " --")
	args := cobra.ExactArgs(len(strings.Fields(words)) - 1)
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: run}
}

// showAnswer sends a request and prints the answer.
func showAnswer[Req, Res any](
	t *tool, cmd *cobra.Command, table cli.Table[Res], route adminapi.Route[Req, Res], body Req, names ...string,
) error {
	value, err := send(t, cmd, route, body, names...)
	if err != nil {
		return err
	}
	return table.One(t.printer(cmd), value)
}

// show calls a route with the arguments of the command and prints the answer.
func show[T any](t *tool, table cli.Table[T], route adminapi.Route[adminapi.None, T]) action {
	return func(cmd *cobra.Command, args []string) error {
		return showAnswer(t, cmd, table, route, adminapi.None{}, args...)
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

// confirmed gives a command the flag --yes. Without it, and without --dry-run, the user must type the name to confirm
// the question. An empty question needs no answer.
func confirmed(cmd *cobra.Command, question func(name string) string) *cobra.Command {
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if q := question(args[0]); q != "" && !*yes && !isDry(cmd) {
			ok, err := cli.TerminalOf(cmd).ConfirmName(q, args[0])
			if err == nil && !ok {
				err = fault.NotConfirmed.With("name", args[0]).Error()
			}
			if err != nil {
				return err
			}
		}
		return run(cmd, args)
	}
	return cmd
}

// isDry reports whether a command has the flag --dry-run.
func isDry(cmd *cobra.Command) bool {
	dry, err := cmd.Flags().GetBool("dry-run")
	return err == nil && dry
}

// problems is the table from error answers to rows of the table of errors.
var problems = map[string]fault.Row{
	problem.KeyStep: fault.KeyStepRefused, problem.Unsupported: fault.TokenCannot,
	problem.Quorum: fault.QuorumWaits, problem.Over: fault.ChangeOver, problem.Signer: fault.ForeignSigner,
	problem.Signature: fault.BadSignatureOfChange, problem.Uncovered: fault.KeysUncovered,
	problem.Exists:   fault.OtherTaken, // see existing
	problem.Conflict: fault.Conflicting, problem.Input: fault.BadRequest, problem.Unavailable: fault.TokenAway,
	problem.Store: fault.StoreAway, problem.PIN: fault.UnlockRefused, problem.Locked: fault.StillLocked,
}

// explain gives an error of the admin API its exit code and hint.
func explain(err error) error {
	var e *adminapi.Error
	switch {
	case errors.Is(err, adminapi.ErrUnanswered):
		return unanswered(err).Of(err)
	case !errors.As(err, &e):
		return err
	}
	row, ok := problems[e.Type]
	switch {
	case e.Type == problem.NotFound:
		row = fault.NoSuchName.With("command", lister(e))
	case !ok:
		row = fault.Internal
	case e.Type == problem.Exists:
		row = existing(e)
	case e.Type == problem.Quorum && e.Change != nil:
		row = fault.QuorumWaitsFor.With("id", e.Change.ID)
	}
	return row.Of(err)
}

// lister returns the command that lists what there is, and what it shows.
func lister(e *adminapi.Error) string {
	switch e.Noun {
	case "change":
		return "countersignctl change list shows the ids"
	case "policy":
		return "countersignctl policy history shows the versions"
	case "hsm":
		return "countersignctl hsm status shows the tokens"
	}
	return "countersignctl " + e.Noun + " list shows the names"
}

// existing returns the row for a name, or something else, that is taken.
func existing(e *adminapi.Error) fault.Row {
	switch {
	case (e.Noun == "client" || e.Noun == "device") && len(e.Names) > 0:
		return fault.NameTaken.With("name", e.Names[0])
	case e.Noun == "admin":
		return fault.AdminTaken
	default:
		return fault.OtherTaken
	}
}

// unanswered returns the row for an admin socket that gave no answer.
func unanswered(err error) fault.Row {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fault.SocketForbidden
	case errors.Is(err, os.ErrNotExist):
		return fault.SocketMissing
	case errors.Is(err, unix.ECONNREFUSED):
		return fault.SocketLeft
	default:
		return fault.SocketSilent
	}
}
