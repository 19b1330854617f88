package main

import (
	"github.com/hashicorp/go-hclog"

	"countersign/appliance/store/audit"
)

// logActs returns a function that writes a line for each audit record of an administrative change: who did what to what.
// The line has no other field of the record, except those in loggedFields.
func logActs(log hclog.Logger) func(audit.Record) {
	return func(rec audit.Record) {
		act, ok := rec.Act()
		if !ok {
			return
		}
		level := hclog.Info
		if act.Verb == routine {
			level = hclog.Debug
		}
		log.Log(level, "administrative act", lineOf(act)...)
	}
}

// routine is the verb of what happens for each client or device by itself: its certificate or its verifier is renewed.
const routine = "renewed"

// loggedFields are the fields of a record that a line may have: none of them holds a secret, a payload or a digest.
var loggedFields = []string{"kind", "version", "reason", "problem", "change"}

func lineOf(act audit.Acted) []any {
	line := []any{"verb", act.Verb, "target", act.Target}
	for _, name := range []string{"operator", "user", "uid", "role"} {
		if value, ok := act.Actor[name]; ok {
			line = append(line, name, value)
		}
	}
	for _, name := range loggedFields {
		if value, ok := act.Fields[name]; ok && value != "" {
			line = append(line, name, value)
		}
	}
	return line
}
