package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/policy"
)

// keyVerb is a step in the life of a key, as a command.
type keyVerb struct {
	use, short string
	route      adminapi.Route[adminapi.KeyStep, []adminapi.Key]
	confirm    func(ref string) bool // the user must type the name
	flags      func(*cobra.Command, *adminapi.KeyStep)
}

func always(string) bool { return true }

// isRoot reports whether the key is the root. Only its activation cannot be undone.
func isRoot(ref string) bool { return ref == "root" || strings.HasPrefix(ref, "root@") }

var keyVerbs = []keyVerb{
	{
		use: "create NAME", route: adminapi.Routes.KeyCreate,
		short: "Make the first version of a key",
	}, {
		use: "rotate NAME", route: adminapi.Routes.KeyRotate, flags: rotateFlags,
		short: "Make or certify the next version, which then waits for activate",
	}, {
		use: "activate NAME[@VERSION]", route: adminapi.Routes.KeyActivate, confirm: isRoot,
		short: "Put the waiting version, or an earlier one, into use at once",
	}, {
		use: "retire NAME[@VERSION]", route: adminapi.Routes.KeyRetire, confirm: always, flags: retireFlags,
		short: "Reject everything that was made with a version no longer in use",
	}, {
		use: "suspend NAME@VERSION", route: adminapi.Routes.KeySuspend,
		short: "Stop using a version until it is resumed",
	}, {
		use: "resume NAME@VERSION", route: adminapi.Routes.KeyResume,
		short: "Use a version again after suspend",
	}, {
		use: "destroy NAME@VERSION", route: adminapi.Routes.KeyDestroy, confirm: always,
		short: "Delete a retired version from its token permanently; with the oldest mac, every client gets new pairwise ids",
	},
}

func rotateFlags(cmd *cobra.Command, step *adminapi.KeyStep) {
	cmd.Flags().BoolVar(&step.Compromised, "compromised", false,
		"the earlier versions were compromised: everyone who learns of the new version rejects them once it is active")
}

func retireFlags(cmd *cobra.Command, step *adminapi.KeyStep) {
	cmd.Flags().BoolVar(&step.Early, "early", false, "before its overlap ends: requests in progress with it fail")
	cmd.Flags().BoolVar(&step.Compromised, "compromised", false, "permanently: it cannot be activated again")
}

func (t *tool) key() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Manage the keys in the HSM"}
	cmd.AddCommand(
		verb("list", "List every key version with state and dates", list(t, keyTable, adminapi.Routes.KeyList)),
		verb("show NAME[@VERSION]", "Show every detail of a key", t.showKey),
		verb("plan", "Show when each key is due for rotation, and how many records are under the keys in use", t.keyPlan),
		verb("attest", "Compare every key object on the token with the registry; exit 1 if one differs", t.attest),
		t.keyBackup(), t.custodians(),
	)
	for _, v := range keyVerbs {
		cmd.AddCommand(t.keyStep(v))
	}
	return cmd
}

func (t *tool) showKey(cmd *cobra.Command, args []string) error {
	keys, err := send(t, cmd, adminapi.Routes.KeyShow, adminapi.None{}, args...)
	if err != nil {
		return err
	}
	if strings.Contains(args[0], "@") {
		return keyDetails.One(t.printer(cmd), keys[0])
	}
	return keyDetails.List(t.printer(cmd), keys)
}

func (t *tool) attest(cmd *cobra.Command, _ []string) error {
	found, err := send(t, cmd, adminapi.Routes.KeyAttest, adminapi.None{})
	if err != nil {
		return err
	}
	if err := findingTable.List(t.printer(cmd), found); err != nil {
		return err
	}
	wrong := slices.DeleteFunc(found, func(f adminapi.Finding) bool { return f.Good })
	if len(wrong) > 0 {
		return fault.KeysDrifted.With("count", strconv.Itoa(len(wrong)), "first", wrong[0].Key).Error()
	}
	return nil
}

// keyPlan prints two tables, or one value.
func (t *tool) keyPlan(cmd *cobra.Command, _ []string) error {
	plan, err := send(t, cmd, adminapi.Routes.KeyPlan, adminapi.None{})
	if err != nil {
		return err
	}
	p := t.printer(cmd)
	if p.Format != cli.FormatTable {
		return cli.Table[adminapi.KeyPlan]{}.One(p, plan)
	}
	if err := dueTable.List(p, plan.Keys); err != nil {
		return err
	}
	return recordsTable.One(p, plan.Records)
}

func (t *tool) keyStep(v keyVerb) *cobra.Command {
	var step adminapi.KeyStep
	cmd := verb(v.use, v.short, func(cmd *cobra.Command, args []string) error {
		keys, err := send(t, cmd, within(cmd, v.route), step, args...)
		if err != nil {
			return t.waiting(cmd, err)
		}
		if err := keyTable.List(t.printer(cmd), keys); err != nil || !step.DryRun {
			return err
		}
		return t.showQuorum(cmd, v, step, args[0])
	})
	cmd.Flags().BoolVar(&step.DryRun, "dry-run", false, "only print the result, and which quorum it takes")
	quorumFlags(cmd)
	if v.confirm != nil {
		confirmed(cmd, func(ref string) string {
			if !v.confirm(ref) {
				return ""
			}
			return "This will " + cmd.Name() + " the key " + ref + "."
		})
	}
	if v.flags != nil {
		v.flags(cmd, &step)
	}
	return cmd
}

// showQuorum prints which administrators a step would need, after a dry run.
func (t *tool) showQuorum(cmd *cobra.Command, v keyVerb, step adminapi.KeyStep, ref string) error {
	step.Request = true
	c, err := send(t, cmd, v.route.Preview(), step, ref)
	if err == nil && c.Required > 0 {
		q := adminapi.Quorum{Kind: c.Kind, Required: c.Required, Able: len(c.Signed) + len(c.Missing)}
		fmt.Fprintln(cmd.ErrOrStderr(), cli.Printable(quorumLine(q)))
	}
	return err
}

// showQuorumOf prints which administrators a kind of change would need, after a dry run.
func (t *tool) showQuorumOf(cmd *cobra.Command, kind policy.Kind) error {
	p, err := send(t, cmd, adminapi.Routes.PolicyShow, adminapi.None{})
	for _, q := range p.Quorums {
		if q.Kind == kind.String() {
			fmt.Fprintln(cmd.ErrOrStderr(), cli.Printable(quorumLine(q)))
		}
	}
	return err
}
