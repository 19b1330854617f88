package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/policy"
)

// policyComparison describes how a policy document differs from the policy in force: its lines, its quorums, and who
// can countersign under it. Control characters are escaped.
func (t *tool) policyComparison(cmd *cobra.Command, document []byte) (string, error) {
	active, err := send(t, cmd, adminapi.Routes.PolicyShow, adminapi.None{})
	if err != nil {
		return "", err
	}
	all, err := send(t, cmd, adminapi.Routes.AdminList, adminapi.None{})
	if err != nil {
		return "", err
	}
	return comparePolicies(active, document, all), nil
}

func comparePolicies(active adminapi.Policy, document []byte, all []adminapi.Administrator) string {
	var out strings.Builder
	name := "policy version " + number(active.Version) + ", in force"
	lines := diff.Diff(name, []byte(active.Document), "this request", document)
	if lines == nil {
		return "\nThe document is " + name + ".\n"
	}
	_, body, _ := bytes.Cut(lines, []byte("\n")) // without its line "diff"
	fmt.Fprintf(&out, "\nChanges of the policy:\n%s", cli.PrintableText(string(body)))
	before, err := policy.ParseStored([]byte(active.Document))
	if err != nil {
		return out.String()
	}
	after, err := policy.Parse(document)
	if err != nil {
		fmt.Fprintf(&out, "\nThe document cannot be applied: %s\n", cli.Printable(err.Error()))
		return out.String()
	}
	fmt.Fprintf(&out, "\nChanges of the quorums:\n%s", strings.Join(quorumChanges(before, after), ""))
	names := signers(all, after)
	fmt.Fprintf(&out, "Under it %d can countersign: %s\n", len(names), cli.Printable(strings.Join(names, ", ")))
	able := len(names)
	for _, text := range doubts(after, &able) {
		fmt.Fprintf(&out, "Warning: %s\n", cli.Printable(text))
	}
	return out.String()
}

// quorumChanges returns a line for each quorum that two policies have different.
func quorumChanges(before, after *policy.Policy) (lines []string) {
	say := func(what, was, becomes string) {
		if was != becomes {
			lines = append(lines, fmt.Sprintf("  %s: from %s to %s\n", what, was, becomes))
		}
	}
	takes := func(p *policy.Policy, k policy.Kind) string {
		if p.Unattended(k) {
			return "no vote"
		}
		return plural(p.Quorum(k).Administrators, "administrator")
	}
	for _, k := range policy.Kinds() {
		say(k.String(), takes(before, k), takes(after, k))
	}
	words := map[bool]string{true: "counting as an administrator", false: "not counting"}
	say("the admin socket", words[before.CountsLocal()], words[after.CountsLocal()])
	if lines == nil {
		lines = []string{"  none\n"}
	}
	return lines
}
