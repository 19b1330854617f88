package main

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/internal/cli"
	"countersign/internal/config"
)

// tool is what every command has: where to ask and how to print.
type tool struct {
	address string
	format  *cli.Format
}

func root() *cobra.Command {
	t := &tool{}
	cmd := &cobra.Command{Use: "countersignctl", Short: "Administer a Countersign appliance"}
	cmd.PersistentFlags().StringVar(&t.address, "admin", "unix:var/admin.sock", "admin socket of the appliance, unix:PATH")
	t.format = cli.AddOutputFlag(cmd)
	cmd.AddCommand(t.status(), t.noun(clientNoun), t.noun(deviceNoun), t.key(), t.hsm(), t.admin(), t.change(), t.policy(), t.store(), t.audit())
	return cmd
}

func (t *tool) api() (*api, error) {
	address, err := config.ParseAddress(t.address)
	if err != nil {
		return nil, cli.Fail(cli.Usage, fmt.Errorf("--admin: %w", err), "for example --admin unix:/var/lib/countersign/admin.sock")
	}
	return newAPI(address), nil
}

func (t *tool) printer(cmd *cobra.Command) cli.Printer {
	return cli.Printer{Out: cmd.OutOrStdout(), Format: *t.format}
}

// show asks for one value and prints it.
func show[T any](t *tool, table cli.Table[T], path func(args []string) string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a, err := t.api()
		if err != nil {
			return err
		}
		var value T
		if err := a.get(cmd.Context(), path(args), &value); err != nil {
			return err
		}
		return table.One(t.printer(cmd), value)
	}
}

// list asks for many values and prints them.
func list[T any](t *tool, table cli.Table[T], path func() string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		a, err := t.api()
		if err != nil {
			return err
		}
		var values []T
		if err := a.get(cmd.Context(), path(), &values); err != nil {
			return err
		}
		return table.List(t.printer(cmd), values)
	}
}

func (t *tool) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Args: cobra.NoArgs, Short: "Show trust domain, policy, HSM and what the store holds",
		RunE: show(t, statusTable, func([]string) string { return "status" }),
	}
}

func (t *tool) audit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read the audit records"}
	var after uint64
	var limit int
	tail := &cobra.Command{
		Use: "tail", Args: cobra.NoArgs, Short: "List audit records, oldest first",
		RunE: list(t, recordTable, func() string {
			return "audit?after=" + strconv.FormatUint(after, 10) + "&limit=" + strconv.Itoa(limit)
		}),
	}
	tail.Flags().Uint64Var(&after, "after", 0, "only records after this sequence number")
	tail.Flags().IntVar(&limit, "limit", 1000, "at most so many, 1 to 1000")
	cmd.AddCommand(tail)
	return cmd
}

// noun is a kind of party with the verbs that all parties have.
type noun struct {
	name, one string
	list      func(*tool) func(*cobra.Command, []string) error
	show      func(*tool) func(*cobra.Command, []string) error
	set       func(t *tool, verb string) func(*cobra.Command, []string) error
	device    bool
}

var clientNoun = noun{
	name: "client", one: "phone",
	list: func(t *tool) func(*cobra.Command, []string) error {
		return list(t, clientTable, func() string { return "client" })
	},
	show: func(t *tool) func(*cobra.Command, []string) error {
		return show(t, clientTable, func(args []string) string { return "client/" + url.PathEscape(args[0]) })
	},
	set: func(t *tool, verb string) func(*cobra.Command, []string) error {
		return act(t, clientTable, "client", verb)
	},
}

var deviceNoun = noun{
	name: "device", one: "authorization device", device: true,
	list: func(t *tool) func(*cobra.Command, []string) error {
		return list(t, deviceTable, func() string { return "device" })
	},
	show: func(t *tool) func(*cobra.Command, []string) error {
		return show(t, deviceTable, func(args []string) string { return "device/" + url.PathEscape(args[0]) })
	},
	set: func(t *tool, verb string) func(*cobra.Command, []string) error {
		return act(t, deviceTable, "device", verb)
	},
}

// act posts a verb for a name and prints what became of it.
func act[T any](t *tool, table cli.Table[T], noun, verb string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a, err := t.api()
		if err != nil {
			return err
		}
		var value T
		if err := a.post(cmd.Context(), noun+"/"+url.PathEscape(args[0])+"/"+verb, struct{}{}, &value); err != nil {
			return err
		}
		return table.One(t.printer(cmd), value)
	}
}

func (t *tool) noun(n noun) *cobra.Command {
	cmd := &cobra.Command{Use: n.name, Short: "Manage each enrolled " + n.one}
	cmd.AddCommand(
		t.invite(n),
		&cobra.Command{Use: "list", Args: cobra.NoArgs, Short: "List all", RunE: n.list(t)},
		&cobra.Command{Use: "show NAME", Args: cobra.ExactArgs(1), Short: "Show one", RunE: n.show(t)},
		&cobra.Command{Use: "suspend NAME", Args: cobra.ExactArgs(1), Short: "Refuse it until it is resumed", RunE: n.set(t, "suspend")},
		&cobra.Command{Use: "resume NAME", Args: cobra.ExactArgs(1), Short: "Accept it again after suspend", RunE: n.set(t, "resume")},
		t.revoke(n),
	)
	if !n.device {
		cmd.AddCommand(&cobra.Command{
			Use: "unlock NAME", Args: cobra.ExactArgs(1), Short: "Take passwords again after too many wrong ones", RunE: n.set(t, "unlock"),
		})
	}
	return cmd
}

func (t *tool) invite(n noun) *cobra.Command {
	var req admin.Invite
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "invite NAME", Args: cobra.ExactArgs(1), Short: "Make a single-use activation code for a new " + n.one,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.TTLSeconds = int64(ttl / time.Second)
			return askFor(t, cmd, asked[admin.Invited]{invitedTable, n.name + "/" + url.PathEscape(args[0]) + "/invite", req, req.DryRun})
		},
	}
	cmd.Flags().BoolVar(&req.Replace, "replace", false, "a lost "+n.one+": revoke NAME if it is enrolled, withdraw an open code, and make a new one")
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the code is good, at most 720h")
	if n.device {
		quorumFlags(cmd)
		cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only print what would be asked for, and who would be missing")
		cmd.Flags().StringVar(&req.Display, "display", "", "name that phones show, at most 24 bytes (default NAME)")
		cmd.Flags().Uint8Var(&req.Floor, "floor", 1, "lowest level that the device accepts, 1 to 4")
	} else {
		cmd.Flags().StringArrayVar(&req.Roles, "role", nil, "role of the new client, such as approver; may be given again")
	}
	return cmd
}

// revoke is final, so it asks for the name to be typed, or for --yes.
func (t *tool) revoke(n noun) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "revoke NAME", Args: cobra.ExactArgs(1), Short: "Refuse it for ever",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				ok, err := cli.TerminalOf(cmd).ConfirmName("revoking "+n.name+" "+args[0]+" cannot be undone", args[0])
				if err != nil {
					return err
				}
				if !ok {
					return cli.Fail(cli.Failed, fmt.Errorf("%s %s was not revoked", n.name, args[0]), "type its name to confirm, or give --yes")
				}
			}
			return n.set(t, "revoke")(cmd, args)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}
