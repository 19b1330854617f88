package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/fault"
)

// party is a noun for enrolled clients or devices.
type party[T any] struct {
	name, one            string // the noun, and what it calls one of them, with its article
	plural               string
	table, details       cli.Table[T]
	list                 adminapi.Route[adminapi.None, []T]
	show, suspend, final adminapi.Route[adminapi.None, T]
	resume               adminapi.Route[adminapi.Ask, T]
}

func (t *tool) client() *cobra.Command {
	r := adminapi.Routes
	cmd := partyCommand(t, party[adminapi.Client]{
		name: "client", one: "a phone", plural: "phones", table: clientTable, details: clientDetails,
		list: r.ClientList, show: r.ClientShow, suspend: r.ClientSuspend, resume: r.ClientResume, final: r.ClientRevoke,
	})
	var req adminapi.Invite
	var roles []string
	invite := t.invite("phone", r.ClientInvite, &req)
	whenGiven(invite, "role", func() error {
		req.Roles = slices.DeleteFunc(roles, func(role string) bool { return role == "" })
		return nil
	})
	invite.Flags().StringArrayVar(&roles, "role", nil, "role of the new phone, such as approver; can be repeated\n"+
		"(default none, or with --replace those of the old one; --role '' gives none)")
	cmd.AddCommand(invite, asking(t, "unlock NAME", "Accept passwords again after too many wrong ones", clientTable, r.ClientUnlock))
	return cmd
}

func (t *tool) device() *cobra.Command {
	r := adminapi.Routes
	cmd := partyCommand(t, party[adminapi.Device]{
		name: "device", one: "an authorization device", plural: "authorization devices",
		table: deviceTable, details: deviceDetails,
		list: r.DeviceList, show: r.DeviceShow, suspend: r.DeviceSuspend, resume: r.DeviceResume, final: r.DeviceRevoke,
	})
	var req adminapi.Invite
	var floor uint8
	invite := t.invite("authorization device", r.DeviceInvite, &req)
	whenGiven(invite, "floor", func() error {
		if req.Floor = floor; floor < 1 || floor > 4 {
			return fault.BadFloor.With("floor", fmt.Sprint(floor)).Error()
		}
		return nil
	})
	invite.Flags().StringVar(&req.Display, "display", "",
		"name that phones show, at most 24 bytes\n(default NAME, or with --replace as before)")
	invite.Flags().Uint8Var(&floor, "floor", 1,
		"lowest level that the device accepts, 1 to 4\n(with --replace as before)")
	cmd.AddCommand(invite)
	return cmd
}

func partyCommand[T any](t *tool, p party[T]) *cobra.Command {
	cmd := &cobra.Command{Use: p.name, Short: "Invite, list, suspend and revoke " + p.name + "s: " + p.plural}
	one := show(t, p.details, p.show)
	brake := func(use, short string, route adminapi.Route[adminapi.None, T]) *cobra.Command {
		return withDryRun("only show "+p.one+" as it is", one, verb(use, short, show(t, p.table, route)))
	}
	revoke := brake("revoke NAME", "Revoke "+p.one+" permanently, and withdraw its open activation code", p.final)
	cmd.AddCommand(
		verb("list", "List all "+p.plural+", and the activation codes that can still be used", list(t, p.table, p.list)),
		verb("show NAME", "Show "+p.one+", or its open activation code", one),
		brake("suspend NAME", "Refuse "+p.one+" at once, until resume", p.suspend),
		asking(t, "resume NAME", "Accept "+p.one+" again after suspend", p.table, p.resume),
		confirmed(revoke, func(name string) string {
			return "This will revoke " + p.name + " " + name + " permanently, and withdraw its open activation code."
		}),
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

// whenGiven has a command first call do, if the user gave a flag.
func whenGiven(cmd *cobra.Command, flag string, do func() error) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed(flag) {
			if err := do(); err != nil {
				return err
			}
		}
		return run(cmd, args)
	}
}

func (t *tool) invite(one string, route inviteRoute, req *adminapi.Invite) *cobra.Command {
	ttl := span{Duration: 24 * time.Hour, most: 30 * 24 * time.Hour}
	cmd := verb("invite NAME", "Make a single-use activation code for a new "+one, func(cmd *cobra.Command, args []string) error {
		req.TTLSeconds = int64(ttl.Duration / time.Second)
		return sendChange(t, cmd, invitedTable, route, *req, args...)
	})
	quorumFlags(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, dryRunHelp)
	cmd.Flags().BoolVar(&req.Replace, "replace", false,
		"for a lost "+one+": revoke NAME if it is enrolled, withdraw its open code, and make a new code.\n"+
			"What you do not give anew stays as it was")
	cmd.Flags().Var(&ttl, "ttl", "time in which the code can be used, at most "+ttl.longest())
	return cmd
}
