package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/internal/cli"
	"countersign/policy"
)

// keyVerb is a step of a key's life as a command.
type keyVerb struct {
	verb, argument, short string
	confirm               func(ref string) bool // asks for the name to be typed
	flags                 func(*cobra.Command, *admin.KeyStep)
}

func always(string) bool { return true }

// rootOnly: every other activation can be taken back.
func rootOnly(ref string) bool { return ref == "root" || len(ref) > 5 && ref[:5] == "root@" }

var keyVerbs = []keyVerb{
	{verb: "create", argument: "NAME", short: "Make the first version of a key that has none"},
	{verb: "rotate", argument: "NAME", short: "Make or certify the next version, which waits for activate", flags: rotateFlags},
	{verb: "activate", argument: "NAME[@VERSION]", short: "Put the version that waits, or an earlier one, into use at once", confirm: rootOnly},
	{verb: "retire", argument: "NAME[@VERSION]", short: "Accept nothing any more that was made with a version no longer in use", confirm: always, flags: retireFlags},
	{verb: "suspend", argument: "NAME@VERSION", short: "Do not use a version until it is resumed"},
	{verb: "resume", argument: "NAME@VERSION", short: "Use a version again after suspend"},
	{verb: "destroy", argument: "NAME@VERSION", short: "Remove a retired version from its token, for ever; with the oldest mac, every client gets new pairwise ids", confirm: always},
}

func rotateFlags(cmd *cobra.Command, step *admin.KeyStep) {
	cmd.Flags().BoolVar(&step.Compromised, "compromised", false, "the versions so far were compromised: once it is activated, the next one rules them out wherever it is known")
}

func retireFlags(cmd *cobra.Command, step *admin.KeyStep) {
	cmd.Flags().BoolVar(&step.Early, "early", false, "before its overlap is over: what is under way with it fails")
	cmd.Flags().BoolVar(&step.Compromised, "compromised", false, "for good: it cannot be activated again")
}

func (t *tool) key() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Manage the keys in the HSM"}
	cmd.AddCommand(
		&cobra.Command{
			Use: "list", Args: cobra.NoArgs, Short: "List every key version with state and dates",
			RunE: list(t, keyTable, func() string { return "key" }),
		},
		&cobra.Command{
			Use: "show NAME[@VERSION]", Args: cobra.ExactArgs(1), Short: "Show all that is known of a key",
			RunE: t.showKey,
		},
	)
	cmd.AddCommand(&cobra.Command{
		Use: "plan", Args: cobra.NoArgs, Short: "Show when each key is to be rotated, and how far client records have come",
		RunE: t.keyPlan,
	}, &cobra.Command{
		Use: "attest", Args: cobra.NoArgs, Short: "Compare every key object on the token with the registry; exit 1 if one is not as it must be",
		RunE: t.attest,
	}, t.keyBackup(), t.custodians())
	for _, v := range keyVerbs {
		cmd.AddCommand(t.keyStep(v))
	}
	return cmd
}

func (t *tool) showKey(cmd *cobra.Command, args []string) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	var keys []admin.Key
	if err := a.get(cmd.Context(), "key/"+url.PathEscape(args[0]), &keys); err != nil {
		return err
	}
	if strings.Contains(args[0], "@") {
		return keyDetails.One(t.printer(cmd), keys[0])
	}
	return keyDetails.List(t.printer(cmd), keys)
}

func (t *tool) attest(cmd *cobra.Command, _ []string) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	var found []admin.Finding
	if err := a.get(cmd.Context(), "key/attest", &found); err != nil {
		return err
	}
	if err := findingTable.List(t.printer(cmd), found); err != nil {
		return err
	}
	wrong := slices.DeleteFunc(found, func(f admin.Finding) bool { return f.Good })
	if len(wrong) > 0 {
		return cli.Fail(cli.Failed, fmt.Errorf("%d keys on the token are not as the registry has them, %s first", len(wrong), wrong[0].Key),
			"an unknown object was put there by somebody, or left by an interrupted step; one that drifted is not to be trusted: rotate it")
	}
	return nil
}

// keyPlan prints two tables, or one value.
func (t *tool) keyPlan(cmd *cobra.Command, _ []string) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	var plan admin.KeyPlan
	if err := a.get(cmd.Context(), "key/plan", &plan); err != nil {
		return err
	}
	p := t.printer(cmd)
	if p.Format != cli.FormatTable {
		return cli.Table[admin.KeyPlan]{}.One(p, plan)
	}
	if err := dueTable.List(p, plan.Keys); err != nil {
		return err
	}
	return recordsTable.One(p, plan.Records)
}

func (t *tool) keyStep(v keyVerb) *cobra.Command {
	var step admin.KeyStep
	var yes bool
	cmd := &cobra.Command{
		Use: v.verb + " " + v.argument, Args: cobra.ExactArgs(1), Short: v.short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if v.confirm != nil && v.confirm(args[0]) && !yes && !step.DryRun {
				if err := confirmStep(cmd, v.verb, args[0]); err != nil {
					return err
				}
			}
			err := t.takeStep(cmd, "key/"+url.PathEscape(args[0])+"/"+v.verb, step)
			if kind := v.kind(args[0]); err == nil && step.DryRun && kind != "" {
				err = t.tellQuorum(cmd, kind)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&step.DryRun, "dry-run", false, "only print what it would come to")
	quorumFlags(cmd)
	if v.confirm != nil {
		cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	}
	if v.flags != nil {
		v.flags(cmd, &step)
	}
	return cmd
}

// kind of change that the step is, "" where it takes no quorum.
func (v keyVerb) kind(ref string) policy.Kind {
	switch {
	case v.verb == "destroy":
		return policy.KeyDestroy
	case rootOnly(ref):
		return policy.RootRotate
	}
	return ""
}

func confirmStep(cmd *cobra.Command, verb, ref string) error {
	ok, err := cli.TerminalOf(cmd).ConfirmName("This is to "+verb+" the key "+ref+".", ref)
	if err != nil {
		return err
	}
	if !ok {
		return cli.Fail(cli.Failed, fmt.Errorf("nothing was done: %s %s", verb, ref), "type its name to confirm, or give --yes; --dry-run shows what it would come to")
	}
	return nil
}

// takeStep prints the key versions that a step changes.
func (t *tool) takeStep(cmd *cobra.Command, path string, step admin.KeyStep) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	var keys []admin.Key
	if err := a.post(cmd.Context(), within(cmd, path), step, &keys); err != nil {
		return t.waiting(cmd, err)
	}
	return keyTable.List(t.printer(cmd), keys)
}
