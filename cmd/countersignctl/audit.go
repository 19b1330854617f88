package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/fault"
)

func (t *tool) audit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read the audit records"}
	var after uint64
	var limit int
	tail := verb("tail", "List the newest audit records, newest first", func(cmd *cobra.Command, _ []string) error {
		if limit < 1 || limit > adminapi.RecordsMost {
			return fault.TooManyRecords.With("limit", strconv.Itoa(limit), "most", strconv.Itoa(adminapi.RecordsMost)).Error()
		}
		route := adminapi.Routes.Audit.With("limit", strconv.Itoa(limit))
		pages := cmd.Flags().Changed("after")
		if pages {
			route = route.With("after", strconv.FormatUint(after, 10))
		}
		records, err := send(t, cmd, route, adminapi.None{})
		if err == nil {
			err = recordTable.List(t.printer(cmd), records)
		}
		if rest := leftOut(records, limit, pages); err == nil && rest != "" {
			fmt.Fprintln(cmd.ErrOrStderr(), rest)
		}
		return err
	})
	tail.Flags().Uint64Var(&after, "after", 0, "list the records after this sequence number instead, oldest first")
	tail.Flags().IntVarP(&limit, "limit", "n", adminapi.RecordsShown, fmt.Sprintf("maximum number of records (1–%d)", adminapi.RecordsMost))
	cmd.AddCommand(tail, verb("show SEQUENCE", "Show one audit record", t.showRecord))
	return cmd
}

// showRecord prints the record of a sequence number.
func (t *tool) showRecord(cmd *cobra.Command, args []string) error {
	n, err := strconv.ParseUint(args[0], 10, 63)
	if err != nil || n == 0 {
		return fault.RecordNumber.With("number", strconv.Quote(args[0])).Error()
	}
	route := adminapi.Routes.Audit.With("after", strconv.FormatUint(n-1, 10)).With("limit", "1")
	records, err := send(t, cmd, route, adminapi.None{})
	switch {
	case err != nil:
		return err
	case len(records) == 0 || records[0].Sequence != n:
		return fault.NoRecord.With("number", args[0]).Error()
	}
	leaf := cli.Table[adminapi.Record]{{Title: "Leaf", Value: func(r adminapi.Record) string { return r.Leaf }}}
	return slices.Concat(recordTable, leaf).One(t.printer(cmd), records[0])
}

// leftOut returns a line that says which records a list leaves out, or "". Sequence numbers have no gaps. A page of
// the oldest records that is full may be the last one.
func leftOut(records []adminapi.Record, limit int, pages bool) string {
	n := len(records)
	switch {
	case n == 0:
		return ""
	case pages && n == limit:
		last := number(records[n-1].Sequence)
		return fmt.Sprintf("showing records %d to %s: --after %s shows the next ones", records[0].Sequence, last, last)
	case !pages && records[n-1].Sequence > 1:
		return fmt.Sprintf("showing the newest %d of %d records: --limit shows more, --after 0 the oldest first",
			n, records[0].Sequence)
	}
	return ""
}

var recordTable = cli.Table[adminapi.Record]{
	{Title: "Seq", Value: func(r adminapi.Record) string { return number(r.Sequence) }},
	{Title: "At", Value: func(r adminapi.Record) string { return date(r.At) }},
	{Title: "Kind", Value: func(r adminapi.Record) string { return r.Kind }},
	{Title: "Subject", Value: func(r adminapi.Record) string { return r.Subject }},
	{Title: "Event", Value: func(r adminapi.Record) string { return eventWords(r.Fields) }},
	{Title: "By", Value: func(r adminapi.Record) string { return actorWords(r.Fields) }},
	{Title: "ID", Value: func(r adminapi.Record) string { return cmp.Or(r.ID, "-") }},
	{Title: "Details", Value: func(r adminapi.Record) string { return cmp.Or(detailWords(r.Fields), "-") }},
}

// eventWords distinguishes records of one kind: it returns the event of a change, or the result of a decision with its
// reason.
func eventWords(fields map[string]any) string {
	if event, ok := fields["event"].(string); ok {
		return event
	}
	if performed, ok := fields["performed"].(bool); ok {
		return map[bool]string{true: "performed", false: "not performed"}[performed]
	}
	result, ok := fields["result"].(string)
	reason, told := fields["reason"].(string)
	switch {
	case !ok:
		return "-"
	case told:
		return fmt.Sprintf("%s: %s (%v)", result, reason, fields["code"])
	}
	return result
}

// actorWords names who acted: the operator whose countersignature made a change, or else the user at the admin socket,
// or the part of the appliance; or the client who ended what another client began. Other records have no actor.
func actorWords(fields map[string]any) string {
	if by, ok := fields["by"].(map[string]any); ok {
		return partyWords(by)
	}
	actor, _ := fields["actor"].(map[string]any)
	for _, name := range []string{"operator", "user", "role"} {
		if text, _ := actor[name].(string); text != "" {
			return text
		}
	}
	if uid, ok := actor["uid"].(float64); ok {
		return "uid " + number(int64(uid))
	}
	return "-"
}

func partyWords(party map[string]any) string {
	id, _ := party["id"].(string)
	if name, _ := party["name"].(string); name != "" {
		return name + " (" + id + ")"
	}
	return id
}

// detailWords returns what a decision is about, or the fields of another record that no other column shows.
func detailWords(fields map[string]any) string {
	if _, ok := fields["evidence"]; ok {
		return strings.Join(requestWords(fields), ", ")
	}
	var words []string
	if kind, ok := fields["kind"].(string); ok {
		return strings.Join(changeWords(kind, fields), ", ")
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		switch name {
		case "event", "actor", "by", "performed", "result", "reason", "code", "id":
			continue
		}
		if fields[name] == false {
			continue
		}
		words = append(words, strings.ReplaceAll(name, "_", " ")+" "+valueWords(name, fields[name]))
	}
	return strings.Join(words, ", ")
}

// changeWords returns what a change request asks for, why it ended, and who signed it.
func changeWords(kind string, fields map[string]any) []string {
	words := []string{kind}
	if p, ok := fields["parameters"].(map[string]any); ok {
		if about := aboutWords(adminapi.Change{Parameters: p}); about != "-" {
			words[0] += " " + about
		}
	}
	for _, name := range []string{"reason", "admin"} {
		if text, ok := fields[name].(string); ok && text != "" {
			words = append(words, text)
		}
	}
	if signed, ok := fields["signed"].([]any); ok {
		words = append(words, "signed by "+valueWords("", signed)+", "+valueWords("", fields["required"])+" needed")
	}
	return words
}

// requestWords returns what a client countersigned: service, amount, text, level, verified factors, device.
func requestWords(fields map[string]any) []string {
	service := valueWords("", fields["service"])
	words := []string{"service " + service}
	if name, ok := fields["service_name"].(string); ok {
		words[0] = name + " (" + service + ")"
	}
	if amount, ok := fields["amount"].(string); ok {
		words = append(words, amount)
	}
	if text, ok := fields["text"].(string); ok {
		words = append(words, strconv.Quote(text))
	}
	words = append(words, "level "+valueWords("", fields["level"]))
	if factors, ok := fields["factors"].([]any); ok && len(factors) > 0 {
		words = append(words, valueWords("", factors))
	}
	if _, ok := fields["second_approval_of"]; ok {
		words = append(words, "as second approver")
	}
	if asked, ok := fields["asked"].(map[string]any); ok {
		words = append(words, "serial "+valueWords("", asked["serial"])+" was "+eventWords(asked))
	}
	if device, ok := fields["device"].(map[string]any); ok {
		words = append(words, "at "+partyWords(device))
	}
	if transaction, ok := fields["transaction"].(string); ok {
		words = append(words, "transaction "+transaction) // as in the journals of the devices
	}
	return words
}

// mostHex is the length of a hexadecimal value that the table shows; -o json has all of it.
const mostHex = 16

// isDate reports whether the number in a field is a time in seconds: the name ends with "_at", or names a date of a key.
func isDate(name string) bool {
	switch name {
	case "not_before", "not_after", "activated", "retired", "suspended", "compromised", "destroyed":
		return true
	}
	return strings.HasSuffix(name, "_at")
}

// valueWords returns the value of a field: a time as a date, a list with "+", and the beginning of long hexadecimal
// values.
func valueWords(name string, value any) string {
	switch v := value.(type) {
	case float64:
		if isDate(name) {
			return date(time.Unix(int64(v), 0))
		}
		return strconv.FormatFloat(v, 'f', -1, 64)
	case []any:
		words := make([]string, len(v))
		for i, one := range v {
			words[i] = valueWords("", one)
		}
		return cmp.Or(strings.Join(words, "+"), "none")
	case map[string]any:
		words := []string{}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			words = append(words, strings.ReplaceAll(key, "_", " ")+": "+valueWords(key, v[key]))
		}
		return "(" + strings.Join(words, ", ") + ")"
	case string:
		if len(v) > 2*mostHex && strings.Trim(v, "0123456789abcdef") == "" {
			return v[:mostHex] + "…"
		}
		return cmp.Or(v, "none")
	}
	return fmt.Sprint(value)
}
