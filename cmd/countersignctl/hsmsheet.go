package main

import (
	"fmt"
	"strconv"
	"strings"

	"countersign/hsm/sheet"
	"countersign/internal/cli"
)

// decimal writes a figure with so many digits behind the point.
func decimal(f float64, digits int) string { return strconv.FormatFloat(f, 'f', digits, 64) }

var sheetTable = cli.Table[sheet.Sheet]{
	{Title: "Library", Value: func(s sheet.Sheet) string {
		return fmt.Sprintf("%s %s, %s, Cryptoki %s", s.Library.Description, s.Library.Version, s.Library.Manufacturer, s.Library.Cryptoki)
	}},
	{Title: "Module", Value: func(s sheet.Sheet) string { return s.Library.Path }},
	{Title: "Token", Value: func(s sheet.Sheet) string {
		return fmt.Sprintf("%s, serial %s, %s %s, hardware %s, firmware %s", s.Token.Label, s.Token.Serial,
			s.Token.Manufacturer, s.Token.Model, s.Token.Hardware, s.Token.Firmware)
	}},
	{Title: "Slot", Value: func(s sheet.Sheet) string { return number(uint64(s.Token.Slot)) }},
	{Title: "Flags", Value: func(s sheet.Sheet) string { return strings.Join(s.Token.Flags, ", ") }},
	{Title: "Session limit", Value: func(s sheet.Sheet) string {
		return limitWords(s.Token.MaxSessions) + ", read-write " + limitWords(s.Token.MaxRWSessions)
	}},
	{Title: "Mechanisms", Value: func(s sheet.Sheet) string { return number(s.Token.Mechanisms) + " listed" }},
}

func limitWords(n uint) string {
	if n == 0 {
		return "none reported"
	}
	return number(uint64(n))
}

var capabilityTable = cli.Table[sheet.Capability]{
	{Title: "Capability", Value: func(c sheet.Capability) string { return c.Name }},
	{Title: "Mechanism", Value: func(c sheet.Capability) string { return c.Mechanism }},
	{Title: "Verdict", Value: func(c sheet.Capability) string { return strings.ReplaceAll(string(c.Verdict), "_", " ") }},
	{Title: "Used for", Value: func(c sheet.Capability) string {
		if c.Required {
			return c.UsedFor + " (required)"
		}
		if c.UsedFor == "" {
			return "-"
		}
		return c.UsedFor
	}},
	{Title: "Error", Value: func(c sheet.Capability) string { return c.Error }},
}

var behaviourTable = cli.Table[sheet.Finding]{
	{Title: "Behaviour", Value: func(f sheet.Finding) string { return strings.ReplaceAll(f.Name, "_", " ") }},
	{Title: "Answer", Value: func(f sheet.Finding) string { return f.Answer }},
}

var costTable = cli.Table[sheet.Cost]{
	{Title: "Call", Value: func(c sheet.Cost) string { return strings.ReplaceAll(c.Name, "_", " ") }},
	{Title: "us", Value: func(c sheet.Cost) string { return decimal(c.US, 1) }},
	{Title: "Note", Value: func(c sheet.Cost) string { return c.Note }},
}

// pointRow is a point of a curve in one table of all curves.
type pointRow struct {
	curve sheet.Curve
	sheet.Point
}

var pointTable = cli.Table[pointRow]{
	{Title: "Operation", Value: func(r pointRow) string { return r.curve.Operation }},
	{Title: "Sessions", Value: func(r pointRow) string { return number(r.Sessions) }},
	{Title: "Per second", Value: func(r pointRow) string { return decimal(r.Rate, 0) }},
	{Title: "p50 us", Value: func(r pointRow) string { return decimal(r.P50, 0) }},
	{Title: "p99 us", Value: func(r pointRow) string { return decimal(r.P99, 0) }},
	{Title: "CPU us", Value: func(r pointRow) string { return decimal(r.CPU, 0) }},
	{Title: "", Value: func(r pointRow) string {
		if r.Sessions == r.curve.Knee {
			return "knee"
		}
		return ""
	}},
}

var settingsTable = cli.Table[sheet.Settings]{
	{Title: "hsm.workers", Value: func(s sheet.Settings) string { return number(s.Workers) }},
	{Title: "hsm.sessions", Value: func(s sheet.Settings) string { return number(s.Sessions) }},
	{Title: "hsm.timeout", Value: func(s sheet.Settings) string { return s.Timeout }},
	{Title: "Why", Value: func(s sheet.Settings) string { return s.Why }},
}

var verdictTable = cli.Table[sheet.Sheet]{
	{Title: "Took", Value: func(s sheet.Sheet) string { return decimal(float64(s.TookMS)/1000, 1) + " s" }},
	{Title: "Removed", Value: func(s sheet.Sheet) string { return number(s.Left) + " objects of an interrupted run" }},
	{Title: "Skipped", Value: func(s sheet.Sheet) string { return listWords(s.Skipped) }},
	{Title: "Missing", Value: func(s sheet.Sheet) string { return listWords(s.Missing) }},
}

func listWords(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, "; ")
}

// printSheet prints tables one below the other, or the whole as one document.
func printSheet(p cli.Printer, s sheet.Sheet) error {
	if p.Format != cli.FormatTable {
		return sheetTable.One(p, s)
	}
	var rows []pointRow
	for _, c := range s.Throughput {
		for _, point := range c.Points {
			rows = append(rows, pointRow{c, point})
		}
	}
	parts := []func() error{
		func() error { return sheetTable.One(p, s) },
		func() error { return capabilityTable.List(p, s.Capabilities) },
		func() error { return behaviourTable.List(p, s.Behaviour) },
		func() error { return costTable.List(p, s.Costs) },
		func() error { return pointTable.List(p, rows) },
	}
	if s.Settings != nil {
		parts = append(parts, func() error { return settingsTable.One(p, *s.Settings) })
	}
	return inParts(p, append(parts, func() error { return verdictTable.One(p, s) }))
}

// inParts prints with an empty line between the parts.
func inParts(p cli.Printer, parts []func() error) error {
	for i, part := range parts {
		if i > 0 {
			if _, err := fmt.Fprintln(p.Out); err != nil {
				return cli.Fail(cli.IO, fmt.Errorf("writing output: %w", err), "")
			}
		}
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// printLine prints one value as it is.
func printLine(p cli.Printer, s string) error {
	if _, err := fmt.Fprintln(p.Out, s); err != nil {
		return cli.Fail(cli.IO, fmt.Errorf("writing output: %w", err), "")
	}
	return nil
}
