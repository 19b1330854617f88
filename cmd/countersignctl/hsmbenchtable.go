package main

import (
	"slices"

	"countersign/hsm/sheet"
	"countersign/internal/cli"
)

var benchTable = cli.Table[sheet.Measured]{
	{Title: "Operation", Value: func(m sheet.Measured) string { return m.Operation }},
	{Title: "Path", Value: func(m sheet.Measured) string { return m.Path }},
	{Title: "At once", Value: func(m sheet.Measured) string { return number(m.Parallel) }},
	{Title: "Per second", Value: func(m sheet.Measured) string { return decimal(m.Rate, 0) }},
	{Title: "p50 us", Value: func(m sheet.Measured) string { return decimal(m.P50, 0) }},
	{Title: "p90 us", Value: func(m sheet.Measured) string { return decimal(m.P90, 0) }},
	{Title: "p99 us", Value: func(m sheet.Measured) string { return decimal(m.P99, 0) }},
	{Title: "Max us", Value: func(m sheet.Measured) string { return decimal(m.Max, 0) }},
	{Title: "CPU us", Value: func(m sheet.Measured) string { return decimal(m.CPU, 0) }},
	{Title: "Of raw, 1 thread", Value: func(m sheet.Measured) string { return percent(m.OfRawOne) }},
	{Title: "Of raw, all sessions", Value: func(m sheet.Measured) string { return percent(m.OfRawAll) }},
}

func percent(f float64) string {
	if f == 0 {
		return "-"
	}
	return decimal(100*f, 0) + " %"
}

var benchHead = cli.Table[sheet.Bench]{
	{Title: "Workers", Value: func(b sheet.Bench) string {
		return number(b.Workers) + " with " + number(b.Sessions) + " sessions each"
	}},
	{Title: "Callers", Value: func(b sheet.Bench) string { return number(b.Callers) + ", for " + decimal(b.Seconds, 1) + " s each" }},
	{Title: "Verifying P-256", Value: func(b sheet.Bench) string {
		return decimal(b.Verify.Mean, 1) + " us in software, " + decimal(b.Verify.Rate, 0) + " per second on one core"
	}},
}

func printBench(p cli.Printer, b sheet.Bench) error {
	if p.Format != cli.FormatTable {
		return benchHead.One(p, b)
	}
	slices.SortStableFunc(b.Measured, func(x, y sheet.Measured) int {
		return slices.Index(sheet.Operations, x.Operation) - slices.Index(sheet.Operations, y.Operation)
	})
	return inParts(p, []func() error{
		func() error { return benchHead.One(p, b) },
		func() error { return benchTable.List(p, b.Measured) },
	})
}
