package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/cmd/hsm-probe/internal/probe"
	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	"countersign/hsm/wire"
	"countersign/internal/cli"
	"countersign/internal/fault"
)

// A probe takes at most probeTime, a quick one quickTime. It counts as hung after its limit: one call of the module may
// take longer.
const (
	probeTime  = 30 * time.Second
	quickTime  = 5 * time.Second
	probeLimit = time.Minute
	quickLimit = 20 * time.Second
)

func (t *tool) probe() *cobra.Command {
	var g target
	var order probe.Order
	cmd := &cobra.Command{
		Use: "probe", Args: cobra.NoArgs, Short: "Try what a PKCS#11 module can do and what it costs",
		Long: `Try every mechanism that the appliance uses, on temporary objects, measure the cost
of calls and the useful number of sessions, and recommend settings. Nothing stays on
the token, but its free sessions, up to 1,024, are taken for a moment: beside a
running service use --quick, which takes 128. Exit code 1: the appliance could not run
on this token, and what is missing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.load(); err != nil {
				return err
			}
			pin, err := g.secret(cmd)
			if err != nil {
				return err
			}
			takes := probeTime
			if order.Quick {
				takes = quickTime
			}
			progress := cli.StartProgress(cmd.ErrOrStderr(), "trying the module", takes)
			s, err := g.probe(cmd.Context(), pin, order)
			progress.End()
			if err != nil {
				return explain(err)
			}
			if err := printSheet(t.printer(cmd), s); err != nil {
				return err
			}
			return unable(s)
		},
	}
	g.flags(cmd)
	cmd.Flags().BoolVar(&order.Quick, "quick", false, "take at most 5 s instead of 30 s")
	cmd.Flags().BoolVar(&order.WrongPIN, "wrong-pin", false, "try a wrong PIN once after the login, which the token may count")
	return cmd
}

func (g *target) probe(ctx context.Context, pin hsm.PIN, order probe.Order) (s report.Sheet, err error) {
	limit := probeLimit
	if order.Quick {
		limit = quickLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = g.do(ctx, job{name: probeJob, token: wire.Config{PIN: pin}, order: order}, &s)
	return s, err
}

// unable returns why the appliance could not run on a token, nil if it could.
func unable(s report.Sheet) error {
	if len(s.Missing) == 0 {
		return nil
	}
	return fault.ProbeLacks.With("missing", strings.Join(s.Missing, "; ")).Error()
}

var sheetTable = cli.Table[report.Sheet]{
	{Title: "Library", Value: func(s report.Sheet) string {
		return fmt.Sprintf("%s %s, %s, Cryptoki %s", s.Library.Description, s.Library.Version, s.Library.Manufacturer, s.Library.Cryptoki)
	}},
	{Title: "Module", Value: func(s report.Sheet) string { return s.Library.Path }},
	{Title: "Token", Value: func(s report.Sheet) string {
		return fmt.Sprintf("%s, serial %s, %s %s, hardware %s, firmware %s", s.Token.Label, s.Token.Serial,
			s.Token.Manufacturer, s.Token.Model, s.Token.Hardware, s.Token.Firmware)
	}},
	{Title: "Slot", Value: func(s report.Sheet) string { return number(uint64(s.Token.Slot)) }},
	{Title: "Flags", Value: func(s report.Sheet) string { return strings.Join(s.Token.Flags, ", ") }},
	{Title: "Session limit", Value: func(s report.Sheet) string {
		return limitWords(s.Token.MaxSessions) + ", read-write " + limitWords(s.Token.MaxRWSessions)
	}},
	{Title: "Mechanisms", Value: func(s report.Sheet) string { return number(s.Token.Mechanisms) + " listed" }},
}

func limitWords(n uint) string {
	if n == 0 {
		return "none reported"
	}
	return number(uint64(n))
}

var capabilityTable = cli.Table[report.Capability]{
	{Title: "Capability", Value: func(c report.Capability) string { return c.Name }},
	{Title: "Mechanism", Value: func(c report.Capability) string { return c.Mechanism }},
	{Title: "Verdict", Value: func(c report.Capability) string { return strings.ReplaceAll(string(c.Verdict), "_", " ") }},
	{Title: "Used for", Value: func(c report.Capability) string {
		if c.Required {
			return c.UsedFor + " (required)"
		}
		if c.UsedFor == "" {
			return "-"
		}
		return c.UsedFor
	}},
	{Title: "Error", Value: func(c report.Capability) string { return c.Error }},
}

var behaviourTable = cli.Table[report.Finding]{
	{Title: "Behaviour", Value: func(f report.Finding) string { return strings.ReplaceAll(f.Name, "_", " ") }},
	{Title: "Answer", Value: func(f report.Finding) string { return f.Answer }},
}

var costTable = cli.Table[report.Cost]{
	{Title: "Call", Value: func(c report.Cost) string { return strings.ReplaceAll(c.Name, "_", " ") }},
	{Title: "us", Value: func(c report.Cost) string { return decimal(c.US, 1) }},
	{Title: "Note", Value: func(c report.Cost) string { return c.Note }},
}

// pointRow is a point of a curve, in one table of all curves.
type pointRow struct {
	curve report.Curve
	report.Point
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

var settingsTable = cli.Table[report.Settings]{
	{Title: "hsm.workers", Value: func(s report.Settings) string { return number(s.Workers) }},
	{Title: "hsm.sessions", Value: func(s report.Settings) string { return number(s.Sessions) }},
	{Title: "hsm.timeout", Value: func(s report.Settings) string { return s.Timeout }},
	{Title: "Why", Value: func(s report.Settings) string { return s.Why }},
}

var verdictTable = cli.Table[report.Sheet]{
	{Title: "Took", Value: func(s report.Sheet) string { return decimal(float64(s.TookMS)/1000, 1) + " s" }},
	{Title: "Removed", Value: func(s report.Sheet) string { return number(s.Left) + " objects of an interrupted run" }},
	{Title: "Ways", Value: func(s report.Sheet) string { return listWords(s.Ways) }},
	{Title: "Skipped", Value: func(s report.Sheet) string { return listWords(s.Skipped) }},
	{Title: "Missing", Value: func(s report.Sheet) string { return listWords(s.Missing) }},
}

func listWords(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, "; ")
}

// printSheet prints tables one below the other, or one document.
func printSheet(p cli.Printer, s report.Sheet) error {
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
