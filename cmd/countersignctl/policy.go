package main

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/policy"
)

var policyTable = cli.Table[adminapi.Policy]{
	{Title: "Version", Value: func(p adminapi.Policy) string { return number(p.Version) }},
	{Title: "Hash", Value: func(p adminapi.Policy) string { return p.Hash }},
	{Title: "Activated", Value: func(p adminapi.Policy) string { return date(p.ActivatedAt) }},
	{Title: "Change request", Value: func(p adminapi.Policy) string { return cmp.Or(p.Change, "-") }},
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
	cmd.AddCommand(t.showPolicy(), t.policyHistory(), t.diffPolicy(), t.checkPolicy(), t.applyPolicy(), t.revertPolicy())
	return cmd
}

// policyOf returns the version that the arguments name, or the policy in force.
func (t *tool) policyOf(cmd *cobra.Command, args []string) (adminapi.Policy, error) {
	if len(args) == 0 {
		return send(t, cmd, adminapi.Routes.PolicyShow, adminapi.None{})
	}
	return send(t, cmd, adminapi.Routes.PolicyAt, adminapi.None{}, args...)
}

func (t *tool) showPolicy() *cobra.Command {
	var documentOnly bool
	const short = "Show the policy in force, or an earlier version, and its quorums"
	cmd := verb("show [VERSION]", short, func(cmd *cobra.Command, args []string) error {
		p, err := t.policyOf(cmd, args)
		switch {
		case err != nil:
			return err
		case documentOnly:
			return printDocument(cmd, p.Document)
		}
		warnOfQuorums(cmd, p)
		return policyTable.One(t.printer(cmd), p)
	})
	cmd.Args = cobra.MaximumNArgs(1)
	cmd.Flags().BoolVar(&documentOnly, "document", false,
		"print policy.toml as it was applied, with control characters escaped")
	return cmd
}

func printDocument(cmd *cobra.Command, document string) error {
	text := cli.PrintableText(document)
	if text != document {
		warn(cmd, []string{"characters of the document were escaped; -o json prints it as it was applied"})
	}
	_, err := fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}

var historyTable = cli.Table[adminapi.PolicyVersion]{
	{Title: "Version", Value: func(p adminapi.PolicyVersion) string { return number(p.Version) }},
	{Title: "Activated", Value: func(p adminapi.PolicyVersion) string { return date(p.ActivatedAt) }},
	{Title: "Change request", Value: func(p adminapi.PolicyVersion) string { return cmp.Or(p.Change, "-") }},
	{Title: "Hash", Value: func(p adminapi.PolicyVersion) string { return p.Hash }},
}

func (t *tool) policyHistory() *cobra.Command {
	return verb("history", "List the versions of the policy, newest first: the first is in force", t.listPolicies)
}

func (t *tool) listPolicies(cmd *cobra.Command, _ []string) error {
	all, err := send(t, cmd, adminapi.Routes.PolicyHistory, adminapi.None{})
	if err != nil {
		return err
	}
	if n := len(all); n > 0 && all[n-1].Version > 1 {
		fmt.Fprintf(cmd.ErrOrStderr(),
			"the newest %d versions; countersignctl policy show VERSION shows an older one\n", n)
	}
	return historyTable.List(t.printer(cmd), all)
}

// revertPolicy applies the document of an earlier version again, as a new version.
func (t *tool) revertPolicy() *cobra.Command {
	var req adminapi.Apply
	const short = "Put an earlier version of the policy into force again, as a new version"
	cmd := verb("revert VERSION", short, func(cmd *cobra.Command, args []string) error {
		p, err := t.policyOf(cmd, args)
		if err != nil {
			return err
		}
		parsed, err := policy.Parse([]byte(p.Document))
		if err != nil {
			return fault.OldPolicy.With("version", strconv.FormatUint(uint64(p.Version), 10), "argument", args[0]).Of(err)
		}
		return t.putIntoForce(cmd, parsed, p.Document, &req)
	})
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, dryRunHelp)
	quorumFlags(cmd)
	return cmd
}

// putIntoForce warns of what an administrator should know about a policy, and asks for the change.
func (t *tool) putIntoForce(cmd *cobra.Command, parsed *policy.Policy, document string, req *adminapi.Apply) error {
	able, err := t.able(cmd, parsed)
	if err != nil {
		return err
	}
	warn(cmd, doubts(parsed, &able))
	req.Document = document
	return sendChange(t, cmd, policyTable, adminapi.Routes.PolicyApply, *req)
}

// policyReport is the result of policy check.
type policyReport struct {
	File     string          `json:"file"`
	Good     bool            `json:"good"`
	Hash     string          `json:"hash,omitempty"` // hex, 32 bytes
	Problems []policyProblem `json:"problems"`
	Warnings []string        `json:"warnings"`
	// Able is how many administrators can countersign under the policy; absent if no appliance answered.
	Able *int `json:"able,omitempty"`
}

type policyProblem struct {
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
}

var policyReportTable = cli.Table[policyReport]{
	{Title: "File", Value: func(r policyReport) string { return r.File }},
	{Title: "Result", Value: func(r policyReport) string { return "good, " + plural(len(r.Warnings), "warning") }},
	{Title: "Hash", Value: func(r policyReport) string { return r.Hash }},
	{Title: "Administrators", Value: func(r policyReport) string {
		if r.Able == nil {
			return "unknown, because no appliance answered"
		}
		return number(*r.Able) + " can countersign under it"
	}},
}

func (t *tool) checkPolicy() *cobra.Command {
	cmd := verb("check FILE", "Check a policy document, and compare its quorums with the administrators", t.reportPolicy)
	cmd.Long = cmd.Short + ".\nThe document is checked without an appliance too; then the administrators are not counted."
	return cmd
}

// reportPolicy prints a report as JSON even of a document that is refused.
func (t *tool) reportPolicy(cmd *cobra.Command, args []string) error {
	r := policyReport{File: args[0], Problems: []policyProblem{}, Warnings: []string{}}
	_, parsed, err := readPolicy(args[0])
	var problems policy.Problems
	if errors.As(err, &problems) && *t.format != cli.FormatTable {
		for _, p := range problems {
			r.Problems = append(r.Problems, policyProblem{p.Line, p.Text})
		}
		err = errors.Join(err, policyReportTable.One(t.printer(cmd), r))
	}
	if err != nil {
		return err
	}
	sum := parsed.Hash()
	r.Good, r.Hash = true, hex.EncodeToString(sum[:])
	if able, err := t.able(cmd, parsed); err == nil {
		r.Able = &able
	}
	r.Warnings = append(r.Warnings, doubts(parsed, r.Able)...)
	warn(cmd, r.Warnings)
	return policyReportTable.One(t.printer(cmd), r)
}

func warn(cmd *cobra.Command, all []string) {
	for _, text := range all {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", cli.Printable(text))
	}
}

// readPolicy reads a document and reports every problem.
func readPolicy(path string) (document []byte, parsed *policy.Policy, err error) {
	document, err = os.ReadFile(path)
	if err != nil {
		return nil, nil, fault.ReadPolicy.Of(err)
	}
	parsed, err = policy.Parse(document)
	if err != nil {
		return nil, nil, fault.BadPolicy.With("path", path).Of(err)
	}
	return document, parsed, nil
}

// able counts who can countersign under a policy.
func (t *tool) able(cmd *cobra.Command, p *policy.Policy) (int, error) {
	all, err := send(t, cmd, adminapi.Routes.AdminList, adminapi.None{})
	return len(signers(all, p)), err
}

// signers returns the names of those who can countersign under a policy.
func signers(all []adminapi.Administrator, p *policy.Policy) (names []string) {
	for _, one := range all {
		if one.Status == "active" {
			names = append(names, one.Name)
		}
	}
	if p.CountsLocal() {
		names = append(names, policy.Local)
	}
	return names
}

// doubts returns what an administrator should know before a policy comes into force. able is how many can countersign
// under it; nil: unknown.
func doubts(p *policy.Policy, able *int) (all []string) {
	for _, e := range p.Evasions() {
		all = append(all, e.String())
	}
	if able == nil {
		return all
	}
	for _, k := range policy.Kinds() {
		if n := p.Quorum(k).Administrators; n > *able {
			all = append(all, quorumLine(adminapi.Quorum{Kind: k.String(), Required: n, Able: *able}))
		}
	}
	var names []string
	for _, k := range p.NeedsAll(*able) {
		names = append(names, k.String())
	}
	if names != nil {
		all = append(all, fmt.Sprintf("%s: every one of the %d administrators who can countersign has to; "+
			"if one is away or suspended, no such change can be made", strings.Join(names, ", "), *able))
	}
	return all
}

func (t *tool) applyPolicy() *cobra.Command {
	var req adminapi.Apply
	cmd := verb("apply FILE", "Put a policy document into force", func(cmd *cobra.Command, args []string) error {
		document, parsed, err := readPolicy(args[0])
		if err != nil {
			return err
		}
		return t.putIntoForce(cmd, parsed, string(document), &req)
	})
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, dryRunHelp)
	quorumFlags(cmd)
	return cmd
}
