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

// policyChanges says how a policy document differs from the policy in force: its lines, its quorums, and who can
// countersign under it.
type policyChanges struct {
	Version  uint64         `json:"version"` // in force
	Diff     string         `json:"diff"`    // unified; "" if the document is the policy in force
	Good     bool           `json:"good"`    // the document can be applied; otherwise only its lines are compared
	Quorums  []quorumChange `json:"quorums"` // nil: not compared
	Signers  []string       `json:"signers"`
	Warnings []string       `json:"warnings"`
}

// quorumChange is a quorum, or the vote of the admin socket, before and after.
type quorumChange struct {
	What string `json:"what"`
	From string `json:"from"`
	To   string `json:"to"`
}

// comparePolicy compares a document with the policy in force.
func (t *tool) comparePolicy(cmd *cobra.Command, document []byte) (c policyChanges, err error) {
	active, err := send(t, cmd, adminapi.Routes.PolicyShow, adminapi.None{})
	if err != nil {
		return c, err
	}
	all, err := send(t, cmd, adminapi.Routes.AdminList, adminapi.None{})
	if err != nil {
		return c, err
	}
	c = policyChanges{Version: active.Version, Signers: []string{}, Warnings: []string{}}
	name := "policy version " + number(active.Version) + ", in force"
	lines := diff.Diff(name, []byte(active.Document), "this document", document)
	if _, body, found := bytes.Cut(lines, []byte("\n")); found { // without its line "diff"
		c.Diff = string(body)
	}
	after, err := policy.Parse(document)
	if err != nil {
		c.Warnings = append(c.Warnings, "the document cannot be applied: "+err.Error())
		return c, nil
	}
	c.Good = true
	if before, err := policy.ParseStored([]byte(active.Document)); err == nil {
		c.Quorums = quorumChanges(before, after)
	} else {
		c.Warnings = append(c.Warnings, "the quorums were not compared with the policy in force: "+err.Error())
	}
	c.Signers = append(c.Signers, signers(all, after)...)
	able := len(c.Signers)
	c.Warnings = append(c.Warnings, doubts(after, &able)...)
	return c, nil
}

// quorumChanges returns each quorum that two policies have different.
func quorumChanges(before, after *policy.Policy) []quorumChange {
	all := []quorumChange{}
	say := func(what, from, to string) {
		if from != to {
			all = append(all, quorumChange{what, from, to})
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
	return all
}

// String returns the changes as a text of several lines, with control characters escaped.
func (c policyChanges) String() string {
	if c.Diff == "" {
		return "The document is policy version " + number(c.Version) + ", in force.\n"
	}
	var out strings.Builder
	fmt.Fprintf(&out, "Changes of the policy:\n%s", cli.PrintableText(c.Diff))
	if c.Quorums != nil {
		out.WriteString("\nChanges of the quorums:\n" + quorumLines(c.Quorums))
	}
	if c.Good {
		fmt.Fprintf(&out, "Under it %d can countersign: %s\n", len(c.Signers), cli.Printable(strings.Join(c.Signers, ", ")))
	}
	for _, text := range c.Warnings {
		fmt.Fprintf(&out, "Warning: %s\n", cli.Printable(text))
	}
	return out.String()
}

func quorumLines(changes []quorumChange) string {
	if len(changes) == 0 {
		return "  none\n"
	}
	var out strings.Builder
	for _, q := range changes {
		fmt.Fprintf(&out, "  %s: from %s to %s\n", q.What, q.From, q.To)
	}
	return out.String()
}

func (t *tool) diffPolicy() *cobra.Command {
	return verb("diff FILE", "Show how a policy document differs from the policy in force", t.printDiff)
}

func (t *tool) printDiff(cmd *cobra.Command, args []string) error {
	document, _, err := readPolicy(args[0])
	if err != nil {
		return err
	}
	c, err := t.comparePolicy(cmd, document)
	if err != nil {
		return err
	}
	p := t.printer(cmd)
	if p.Format != cli.FormatTable {
		return cli.Table[policyChanges]{}.One(p, c)
	}
	_, err = fmt.Fprint(p.Out, c)
	return err
}
