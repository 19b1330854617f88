package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/internal/cli"
)

// This file prints change requests. It reads them from their own bytes, so that an administrator need not trust the
// appliance's summary.

var changeTable = cli.Table[adminapi.Change]{
	{Title: "ID", Value: func(c adminapi.Change) string { return c.ID }},
	{Title: "Kind", Value: func(c adminapi.Change) string { return c.Kind }},
	{Title: "About", Value: aboutWords},
	{Title: "State", Value: func(c adminapi.Change) string { return c.State }},
	{Title: "Signed", Value: quorumWords},
	{Title: "Expires", Value: func(c adminapi.Change) string { return date(c.ExpiresAt) }},
}

// changeHead has the lines of every change request. See [detailsOf].
var changeHead = cli.Table[adminapi.Change]{
	{Title: "ID", Value: func(c adminapi.Change) string { return c.ID }},
	{Title: "Hash", Value: func(c adminapi.Change) string { return c.Hash }},
	{Title: "Kind", Value: func(c adminapi.Change) string { return c.Kind }},
	{Title: "State", Value: stateWords},
	{Title: "Signed", Value: quorumWords},
	{Title: "Missing", Value: missingWords},
	{Title: "Requested by", Value: func(c adminapi.Change) string { return c.By + ", " + date(c.CreatedAt) }},
	{Title: "Expires", Value: func(c adminapi.Change) string { return date(c.ExpiresAt) }},
	{Title: "Ended", Value: func(c adminapi.Change) string { return optionalDate(c.EndedAt) }},
}

// detailsOf returns the table of one request: its head, what it does, and each parameter.
func detailsOf(c adminapi.Change) cli.Table[adminapi.Change] {
	table := slices.Clone(changeHead)
	line := func(title, text string) {
		table = append(table, cli.Column[adminapi.Change]{Title: title, Value: func(adminapi.Change) string { return text }})
	}
	r, err := change.Parse(c.Document)
	if err != nil {
		line("Effect", "unknown: "+err.Error())
		return table
	}
	for _, text := range r.Effect() {
		line("Effect", text)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Parameters)) {
		line("Parameter", name+" = "+parameterWords(r.Parameters[name]))
	}
	return table
}

// parameterWords formats a parameter on one line. A long byte string is a document, of which it gives the size.
func parameterWords(value any) string {
	raw, isBytes := value.([]byte)
	switch {
	case len(raw) > 64:
		return fmt.Sprintf("%d bytes, SHA-256 %s", len(raw), change.HashOf(raw))
	case isBytes:
		return hex.EncodeToString(raw)
	}
	return fmt.Sprint(value)
}

// printChange prints a request. As a table it also prints how a policy in the request differs from the one in force.
func (t *tool) printChange(cmd *cobra.Command, c adminapi.Change) error {
	p := t.printer(cmd)
	if err := detailsOf(c).One(p, c); err != nil || p.Format != cli.FormatTable || c.EndedAt != nil {
		return err
	}
	r, err := change.Parse(c.Document)
	if document := r.Parameters.Bytes("document"); err == nil && document != nil {
		changes, err := t.comparePolicy(cmd, document)
		if err == nil {
			_, err = fmt.Fprintf(p.Out, "\n%s", changes)
		}
		return err
	}
	return nil
}

// waitingChange is a request that a command made, and the activation code that is valid once it is executed.
type waitingChange struct {
	adminapi.Change
	ActivationCode string `json:"activation_code,omitempty"`
}

// detailsOfWaiting returns the table of a request that a command made. The command has printed its parameters.
func detailsOfWaiting(w waitingChange) cli.Table[waitingChange] {
	var table cli.Table[waitingChange]
	for _, column := range changeHead {
		if column.Title != "Requested by" && column.Title != "Ended" {
			value := column.Value
			table = append(table, cli.Column[waitingChange]{
				Title: column.Title, Value: func(w waitingChange) string { return value(w.Change) },
			})
		}
	}
	if w.ActivationCode == "" {
		return table
	}
	return append(table, cli.Column[waitingChange]{Title: "Activation code", Value: func(w waitingChange) string {
		return w.ActivationCode + " (valid once the request is executed)"
	}})
}

// aboutWords names what a request changes, "-" for a kind that changes one thing only.
func aboutWords(c adminapi.Change) string {
	var words []string
	if verb, ok := c.Parameters["verb"]; ok {
		words = append(words, fmt.Sprint(verb))
	}
	name, named := c.Parameters["name"]
	if strings.HasPrefix(c.Kind, "root.") {
		name, named = "root", true
	}
	version, versioned := c.Parameters["version"]
	switch {
	case named && versioned && isKeyStep(c.Kind):
		words = append(words, fmt.Sprintf("%v@%v", name, version))
	case named:
		words = append(words, fmt.Sprint(name))
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

func isKeyStep(kind string) bool {
	return strings.HasPrefix(kind, "key.") || strings.HasPrefix(kind, "root.")
}

func stateWords(c adminapi.Change) string {
	if c.Reason == "" {
		return c.State
	}
	return c.State + ": " + c.Reason
}

func quorumWords(c adminapi.Change) string {
	text := fmt.Sprintf("%d of %s", len(c.Signed), plural(c.Required, "administrator"))
	if len(c.Signed) > 0 {
		text += " (" + strings.Join(c.Signed, ", ") + ")"
	}
	return text
}

func missingWords(c adminapi.Change) string {
	if c.More == 0 || c.State != "open" && c.State != "dry-run" {
		return "-"
	}
	return fmt.Sprintf("%d more: %s", c.More, choiceWords(c))
}

// choiceWords says which administrators can still countersign, and how many of them have to.
func choiceWords(c adminapi.Change) string {
	switch n := len(c.Missing); {
	case n == 0:
		return "but no other administrator can countersign"
	case n < c.More:
		return "but only " + anded(c.Missing, "and") + " can countersign"
	case n == c.More:
		return anded(c.Missing, "and")
	case c.More == 1:
		return anded(c.Missing, "or")
	}
	return fmt.Sprintf("any %d of %s", c.More, anded(c.Missing, "and"))
}

// anded joins words as a sentence does.
func anded(words []string, last string) string {
	n := len(words)
	if n < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:n-1], ", ") + " " + last + " " + words[n-1]
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return number(n) + " " + noun + "s"
}

// showRequest prints every field of a request, from its own bytes, and what it does. A document it prints only to those
// who sign: the command that made the request has read it from a file.
func showRequest(w io.Writer, r fetched) {
	fmt.Fprintf(w, "change   %s\nhash     %s\nkind     %s\n", r.hash.ID(), r.hash, r.Kind)
	for _, text := range r.Effect() {
		fmt.Fprintf(w, "effect   %s\n", cli.Printable(text))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Parameters)) {
		showParameter(w, name, r.Parameters[name], r.whole)
	}
	at := func(seconds uint64) string { return date(time.Unix(int64(min(seconds, 1<<40)), 0)) }
	fmt.Fprintf(w, "domain   %s\nby       %s\n", cli.Printable(r.Domain), cli.Printable(r.By))
	fmt.Fprintf(w, "created  %s\nexpires  %s\n", at(r.Created), at(r.Expires))
}

// showParameter prints one parameter on a line, or a whole document on its lines.
func showParameter(w io.Writer, name string, value any, whole bool) {
	raw, isBytes := value.([]byte)
	if name == "document" && isBytes && whole {
		fmt.Fprintf(w, "  %s\n", cli.Printable(name))
		for line := range strings.SplitSeq(strings.TrimSuffix(string(raw), "\n"), "\n") {
			fmt.Fprintf(w, "    | %s\n", cli.Printable(line))
		}
		return
	}
	fmt.Fprintf(w, "  %s = %s\n", cli.Printable(name), cli.Printable(parameterWords(value)))
}
