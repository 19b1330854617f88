package main

import (
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
)

// party is a noun for enrolled clients or devices.
type party[T any] struct {
	name, one                    string // the noun, and what it calls one of them
	table                        cli.Table[T]
	list                         adminapi.Route[adminapi.None, []T]
	show, suspend, resume, final adminapi.Route[adminapi.None, T]
}

func (t *tool) client() *cobra.Command {
	r := adminapi.Routes
	cmd := partyCommand(t, party[adminapi.Client]{
		name: "client", one: "phone", table: clientTable,
		list: r.ClientList, show: r.ClientShow, suspend: r.ClientSuspend, resume: r.ClientResume, final: r.ClientRevoke,
	})
	var req adminapi.Invite
	invite := t.invite("phone", r.ClientInvite, &req)
	invite.Flags().StringArrayVar(&req.Roles, "role", nil, "role of the new client, such as approver; can be repeated")
	cmd.AddCommand(invite, &cobra.Command{
		Use: "unlock NAME", Args: cobra.ExactArgs(1), Short: "Accept passwords again after too many wrong ones",
		RunE: show(t, clientTable, r.ClientUnlock),
	})
	return cmd
}

func (t *tool) device() *cobra.Command {
	r := adminapi.Routes
	cmd := partyCommand(t, party[adminapi.Device]{
		name: "device", one: "authorization device", table: deviceTable,
		list: r.DeviceList, show: r.DeviceShow, suspend: r.DeviceSuspend, resume: r.DeviceResume, final: r.DeviceRevoke,
	})
	var req adminapi.Invite
	invite := t.invite("authorization device", r.DeviceInvite, &req)
	quorumFlags(invite)
	invite.Flags().BoolVar(&req.DryRun, "dry-run", false, dryRunHelp)
	invite.Flags().StringVar(&req.Display, "display", "", "name that phones show, at most 24 bytes (default NAME)")
	invite.Flags().Uint8Var(&req.Floor, "floor", 1, "lowest level that the device accepts, 1 to 4")
	cmd.AddCommand(invite)
	return cmd
}

func partyCommand[T any](t *tool, p party[T]) *cobra.Command {
	cmd := &cobra.Command{Use: p.name, Short: "Manage each enrolled " + p.one}
	verb := func(use, short string, route adminapi.Route[adminapi.None, T]) *cobra.Command {
		return &cobra.Command{Use: use + " NAME", Args: cobra.ExactArgs(1), Short: short, RunE: show(t, p.table, route)}
	}
	revoke := verb("revoke", "Revoke a "+p.one+" permanently", p.final)
	yes := revoke.Flags().Bool("yes", false, "do not ask")
	run := revoke.RunE
	revoke.RunE = func(cmd *cobra.Command, args []string) error {
		if !*yes {
			if err := confirm(cmd, "Revoking "+p.name+" "+args[0]+" cannot be undone.", args[0]); err != nil {
				return err
			}
		}
		return run(cmd, args)
	}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Args: cobra.NoArgs, Short: "List all", RunE: list(t, p.table, p.list)},
		verb("show", "Show one", p.show),
		verb("suspend", "Refuse it until it is resumed", p.suspend),
		verb("resume", "Accept it again after suspend", p.resume),
		revoke,
	)
	return cmd
}

func (t *tool) invite(one string, route adminapi.Route[adminapi.Invite, adminapi.Invited], req *adminapi.Invite) *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "invite NAME", Args: cobra.ExactArgs(1), Short: "Make a single-use activation code for a new " + one,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.TTLSeconds = int64(ttl / time.Second)
			return sendChange(t, cmd, proposal[adminapi.Invite, adminapi.Invited]{invitedTable, route, *req, req.DryRun}, args...)
		},
	}
	cmd.Flags().BoolVar(&req.Replace, "replace", false,
		"a lost "+one+": revoke NAME if it is enrolled, withdraw an open code, and make a new one")
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the code is valid, at most 720h")
	return cmd
}
