package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"countersign/appliance/admin"
	"countersign/appliance/change"
	"countersign/internal/cli"
)

var changeTable = cli.Table[admin.Change]{
	{Title: "ID", Value: func(c admin.Change) string { return c.ID }},
	{Title: "Kind", Value: func(c admin.Change) string { return c.Kind }},
	{Title: "About", Value: aboutWords},
	{Title: "State", Value: func(c admin.Change) string { return c.State }},
	{Title: "Signed", Value: quorumWords},
	{Title: "Expires", Value: func(c admin.Change) string { return date(c.ExpiresAt) }},
}

var changeDetails = cli.Table[admin.Change]{
	{Title: "ID", Value: func(c admin.Change) string { return c.ID }},
	{Title: "Hash", Value: func(c admin.Change) string { return c.Hash }},
	{Title: "Kind", Value: func(c admin.Change) string { return c.Kind }},
	{Title: "About", Value: aboutWords},
	{Title: "State", Value: stateWords},
	{Title: "Signed", Value: quorumWords},
	{Title: "Missing", Value: missingWords},
	{Title: "Requested by", Value: func(c admin.Change) string { return c.By + ", " + date(c.CreatedAt) }},
	{Title: "Expires", Value: func(c admin.Change) string { return date(c.ExpiresAt) }},
	{Title: "Ended", Value: func(c admin.Change) string { return optionalDate(c.EndedAt) }},
}

// waitingChange is a request that a command made, and the activation code that is good
// once it is executed.
type waitingChange struct {
	admin.Change
	ActivationCode string `json:"activation_code,omitempty"`
}

var waitingTable = cli.Table[waitingChange]{
	{Title: "ID", Value: func(w waitingChange) string { return w.ID }},
	{Title: "Hash", Value: func(w waitingChange) string { return w.Hash }},
	{Title: "Kind", Value: func(w waitingChange) string { return w.Kind }},
	{Title: "About", Value: func(w waitingChange) string { return aboutWords(w.Change) }},
	{Title: "State", Value: func(w waitingChange) string { return stateWords(w.Change) }},
	{Title: "Signed", Value: func(w waitingChange) string { return quorumWords(w.Change) }},
	{Title: "Missing", Value: func(w waitingChange) string { return missingWords(w.Change) }},
	{Title: "Expires", Value: func(w waitingChange) string { return date(w.ExpiresAt) }},
	{Title: "Activation code", Value: activationWords},
}

func activationWords(w waitingChange) string {
	if w.ActivationCode == "" {
		return "-"
	}
	return w.ActivationCode + " (good once the request is executed)"
}

// aboutWords is the short form of the parameters: what the change is about.
func aboutWords(c admin.Change) string {
	var words []string
	for _, name := range []string{"verb", "name", "version"} {
		if value, ok := c.Parameters[name]; ok {
			words = append(words, fmt.Sprint(value))
		}
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

func stateWords(c admin.Change) string {
	if c.Reason == "" {
		return c.State
	}
	return c.State + ": " + c.Reason
}

func quorumWords(c admin.Change) string {
	return fmt.Sprintf("%d of %d administrators (%s)", len(c.Signed), c.Required, strings.Join(c.Signed, ", "))
}

func missingWords(c admin.Change) string {
	switch {
	case c.More == 0:
		return "-"
	case len(c.Missing) < c.More:
		return fmt.Sprintf("%d more, and only %d could countersign (%s)", c.More, len(c.Missing), strings.Join(c.Missing, ", "))
	}
	return fmt.Sprintf("%d more of %s", c.More, strings.Join(c.Missing, ", "))
}

// showRequest prints what the bytes of a request say, all of it.
func showRequest(w io.Writer, r change.Request, hash change.Hash) {
	fmt.Fprintf(w, "change   %s\nhash     %s\nkind     %s\n", hash.ID(), hash, r.Kind)
	for _, name := range slices.Sorted(maps.Keys(r.Parameters)) {
		showParameter(w, name, r.Parameters[name])
	}
	at := func(seconds uint64) string { return date(time.Unix(int64(min(seconds, 1<<40)), 0)) }
	fmt.Fprintf(w, "domain   %s\nby       %s\ncreated  %s\nexpires  %s\n", cli.Printable(r.Domain), cli.Printable(r.By), at(r.Created), at(r.Expires))
}

// showParameter prints one parameter on a line, a document on as many as it has.
func showParameter(w io.Writer, name string, value any) {
	raw, isBytes := value.([]byte)
	if name == "document" && isBytes {
		fmt.Fprintf(w, "  %s\n", cli.Printable(name))
		for line := range strings.SplitSeq(strings.TrimSuffix(string(raw), "\n"), "\n") {
			fmt.Fprintf(w, "    | %s\n", cli.Printable(line))
		}
		return
	}
	if isBytes {
		value = hex.EncodeToString(raw)
	}
	fmt.Fprintf(w, "  %s = %s\n", cli.Printable(name), cli.Printable(fmt.Sprint(value)))
}
