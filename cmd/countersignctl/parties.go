package main

import (
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
)

// party is a noun for enrolled clients or devices.
type party[T any] struct {
	name, one            string // the noun, and what it calls one of them
	table                cli.Table[T]
	list                 adminapi.Route[adminapi.None, []T]
	show, suspend, final adminapi.Route[adminapi.None, T]
	resume               adminapi.Route[adminapi.Ask, T]
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
	cmd.AddCommand(invite, asking(t, "unlock NAME", "Accept passwords again after too many wrong ones", clientTable, r.ClientUnlock))
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
	invite.Flags().StringVar(&req.Display, "display", "", "name that phones show, at most 24 bytes (default NAME)")
	invite.Flags().Uint8Var(&req.Floor, "floor", 1, "lowest level that the device accepts, 1 to 4")
	cmd.AddCommand(invite)
	return cmd
}

func partyCommand[T any](t *tool, p party[T]) *cobra.Command {
	cmd := &cobra.Command{Use: p.name, Short: "Manage each enrolled " + p.one}
	revoke := verb("revoke NAME", "Revoke a "+p.one+" permanently", show(t, p.table, p.final))
	cmd.AddCommand(
		verb("list", "List all", list(t, p.table, p.list)),
		verb("show NAME", "Show one", show(t, p.table, p.show)),
		verb("suspend NAME", "Refuse it until it is resumed", show(t, p.table, p.suspend)),
		asking(t, "resume NAME", "Accept it again after suspend", p.table, p.resume),
		confirmed(revoke, func(name string) string { return "Revoking " + p.name + " " + name + " cannot be undone." }),
	)
	return cmd
}

// asking returns a command that asks for a change of the party that its argument names. The change may need a quorum.
func asking[T any](t *tool, use, short string, table cli.Table[T], route adminapi.Route[adminapi.Ask, T]) *cobra.Command {
	var req adminapi.Ask
	cmd := verb(use, short, func(cmd *cobra.Command, args []string) error {
		return sendChange(t, cmd, table, route, req, args...)
	})
	quorumFlags(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, dryRunHelp)
	return cmd
}

type inviteRoute = adminapi.Route[adminapi.Invite, adminapi.Invited]

func (t *tool) invite(one string, route inviteRoute, req *adminapi.Invite) *cobra.Command {
	var ttl time.Duration
	cmd := verb("invite NAME", "Make a single-use activation code for a new "+one, func(cmd *cobra.Command, args []string) error {
		req.TTLSeconds = int64(ttl / time.Second)
		return sendChange(t, cmd, invitedTable, route, *req, args...)
	})
	quorumFlags(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, dryRunHelp)
	cmd.Flags().BoolVar(&req.Replace, "replace", false,
		"a lost "+one+": revoke NAME if it is enrolled, withdraw an open code, and make a new one")
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the code is valid, at most 720h")
	return cmd
}
