package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/cmd/internal/cli"
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
	{verb: "rotate", argument: "NAME", short: "Make or certify the next version, which waits for activate"},
	{verb: "activate", argument: "NAME[@VERSION]", short: "Put the version that waits, or an earlier one, into use at once", confirm: rootOnly},
	{verb: "retire", argument: "NAME[@VERSION]", short: "Accept nothing any more that was made with a version no longer in use", confirm: always, flags: retireFlags},
	{verb: "suspend", argument: "NAME@VERSION", short: "Do not use a version until it is resumed"},
	{verb: "resume", argument: "NAME@VERSION", short: "Use a version again after suspend"},
	{verb: "destroy", argument: "NAME@VERSION", short: "Remove a retired version from its token, for ever", confirm: always},
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
	if len(keys) == 1 {
		return keyDetails.One(t.printer(cmd), keys[0])
	}
	return keyDetails.List(t.printer(cmd), keys)
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
			return t.takeStep(cmd, "key/"+url.PathEscape(args[0])+"/"+v.verb, step)
		},
	}
	cmd.Flags().BoolVar(&step.DryRun, "dry-run", false, "only print what it would come to")
	waitFlag(cmd)
	if v.confirm != nil {
		cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	}
	if v.flags != nil {
		v.flags(cmd, &step)
	}
	return cmd
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
	if err := a.post(cmd.Context(), path, step, &keys); err != nil {
		return t.waiting(cmd, err)
	}
	return keyTable.List(t.printer(cmd), keys)
}
