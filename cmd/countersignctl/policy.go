package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/policy"
)

var policyTable = cli.Table[adminapi.Policy]{
	{Title: "Version", Value: func(p adminapi.Policy) string { return number(p.Version) }},
	{Title: "Hash", Value: func(p adminapi.Policy) string { return p.Hash }},
	{Title: "Activated", Value: func(p adminapi.Policy) string { return date(p.ActivatedAt) }},
	{Title: "Quorums", Value: quorumList},
}

func quorumList(p adminapi.Policy) string {
	var words []string
	for _, q := range p.Quorums {
		words = append(words, fmt.Sprintf("%s %d", q.Kind, q.Required))
	}
	return strings.Join(words, ", ")
}

func (t *tool) policy() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Show the policy, check a new one and apply it"}
	cmd.AddCommand(
		t.showPolicy(), t.applyPolicy(),
		&cobra.Command{
			Use: "check FILE", Args: cobra.ExactArgs(1), Short: "Check a policy document, without the appliance",
			RunE: func(cmd *cobra.Command, args []string) error {
				document, err := readPolicy(cmd, args[0])
				if err == nil {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is good, hash %s\n", args[0], hashOfPolicy(document))
				}
				return err
			},
		},
	)
	return cmd
}

func hashOfPolicy(document []byte) string {
	p, err := policy.Parse(document)
	if err != nil {
		return "-"
	}
	sum := p.Hash()
	return hex.EncodeToString(sum[:])
}

// readPolicy reads a document and reports every problem. It warns of quorums that fewer administrators can change.
func readPolicy(cmd *cobra.Command, path string) ([]byte, error) {
	document, err := os.ReadFile(path)
	if err != nil {
		return nil, cli.Fail(cli.IO, fmt.Errorf("reading the policy: %w", err), "")
	}
	parsed, err := policy.Parse(document)
	if err != nil {
		return nil, cli.Fail(cli.Config, err, "correct "+path+"; countersignctl policy show --document prints the active one")
	}
	for _, e := range parsed.Evasions() {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", e)
	}
	return document, nil
}

func (t *tool) showPolicy() *cobra.Command {
	var documentOnly bool
	cmd := &cobra.Command{
		Use: "show", Args: cobra.NoArgs, Short: "Show the active policy and its quorums",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := send(t, cmd, adminapi.Routes.PolicyShow, adminapi.None{})
			if err != nil {
				return err
			}
			if documentOnly {
				_, err := fmt.Fprint(cmd.OutOrStdout(), p.Document)
				return err
			}
			warnOfQuorums(cmd, p)
			return policyTable.One(t.printer(cmd), p)
		},
	}
	cmd.Flags().BoolVar(&documentOnly, "document", false, "print policy.toml as it was applied")
	return cmd
}

func (t *tool) applyPolicy() *cobra.Command {
	var req adminapi.Apply
	cmd := &cobra.Command{
		Use: "apply FILE", Args: cobra.ExactArgs(1), Short: "Activate a policy document",
		RunE: func(cmd *cobra.Command, args []string) error {
			document, err := readPolicy(cmd, args[0])
			if err != nil {
				return err
			}
			req.Document = string(document)
			return sendChange(t, cmd, proposal[adminapi.Apply, adminapi.Policy]{policyTable, adminapi.Routes.PolicyApply, req, req.DryRun})
		},
	}
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, dryRunHelp)
	quorumFlags(cmd)
	return cmd
}
