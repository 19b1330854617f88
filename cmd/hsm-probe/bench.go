package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"countersign/cmd/hsm-probe/internal/measure"
	"countersign/cmd/hsm-probe/internal/probe"
	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	"countersign/hsm/pool"
	"countersign/hsm/wire"
	"countersign/internal/cli"
	"countersign/internal/fault"
)

// bench compares the service with its token.
type bench struct {
	target
	workers, sessions, callers int
	time                       time.Duration
	only                       []string
	progress                   *cli.Progress
}

// measurements returns how many times the bench measures for [bench.time]: each operation alone and at once, in the C
// loop and through the service, and what verifying adds.
func (b *bench) measurements() int {
	n := len(b.only) * (len(slices.Compact([]int{1, b.workers * b.sessions})) + len(slices.Compact([]int{1, b.callers})))
	if slices.Contains(b.only, report.Sign) {
		n += 2
	}
	return n
}

func (t *tool) bench() *cobra.Command {
	var b bench
	cmd := &cobra.Command{
		Use: "bench", Args: cobra.NoArgs, Short: "Compare the speed of the service with that of the token",
		Long: `Measure signatures, derivations and MACs through worker processes, as the appliance
does them, and the same in a C loop on the token, with temporary keys that are
removed afterwards.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.check(); err != nil {
				return err
			}
			pin, err := b.secret(cmd)
			if err != nil {
				return err
			}
			defer pin.Zero()
			b.progress = cli.StartProgress(cmd.ErrOrStderr(), "measuring the token", time.Duration(b.measurements())*b.time)
			made, err := b.run(cmd.Context(), pin)
			b.progress.End()
			if err != nil {
				return explain(err)
			}
			return printBench(t.printer(cmd), made)
		},
	}
	b.flags(cmd)
	f := cmd.Flags()
	f.IntVar(&b.workers, "workers", 0, "worker processes (default hsm.workers, or 2)")
	f.IntVar(&b.sessions, "sessions", 0, "sessions of each worker (default hsm.sessions, or 2)")
	f.IntVar(&b.callers, "callers", 0, "callers at once (default four per session)")
	f.DurationVar(&b.time, "time", 2*time.Second, "length of each measurement")
	f.StringSliceVar(&b.only, "operation", nil, "measure only these: "+strings.Join(report.Operations, ", "))
	return cmd
}

// check applies the defaults and checks the flags.
func (b *bench) check() error {
	if err := b.load(); err != nil {
		return err
	}
	for _, one := range []struct {
		value     *int
		otherwise []int
	}{{&b.workers, []int{b.hsm.Workers, 2}}, {&b.sessions, []int{b.hsm.Sessions, 2}}} {
		for _, v := range one.otherwise {
			if *one.value == 0 {
				*one.value = v
			}
		}
	}
	if b.callers == 0 {
		b.callers = 4 * b.workers * b.sessions
	}
	if min(b.workers, b.sessions, b.callers) < 1 || b.workers > 64 || b.sessions > 1024 || b.time < 10*time.Millisecond || b.time > time.Minute {
		return fault.BenchBounds.Error()
	}
	for _, op := range b.only {
		if !slices.Contains(report.Operations, op) {
			return fault.BenchOperation.With("name", strconv.Quote(op), "operations", strings.Join(report.Operations, ", ")).Error()
		}
	}
	if len(b.only) == 0 {
		b.only = report.Operations
	}
	return nil
}

// run measures the token first, so that a refused PIN was tried once, then the service. It
// always removes its keys.
func (b *bench) run(ctx context.Context, pin hsm.PIN) (r report.Bench, err error) {
	r = report.Bench{Workers: b.workers, Sessions: b.sessions, Callers: b.callers, Seconds: b.time.Seconds()}
	if err := b.raw(ctx, pin, &r); err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, b.clean(ctx, pin)) }()
	if err := b.service(ctx, pin, &r); err != nil {
		return r, err
	}
	r.Compare()
	return r, nil
}

func (b *bench) raw(ctx context.Context, pin hsm.PIN, r *report.Bench) error {
	threads := slices.Compact([]int{1, b.workers * b.sessions})
	var raw report.Raw
	err := b.do(ctx, job{
		name: loopJob, token: wire.Config{PIN: bytes.Clone(pin)},
		order: probe.Order{Time: b.time, Sessions: threads, Only: b.only},
	}, &raw)
	r.AddRaw(raw)
	return err
}

// cleanLimit bounds the removal of keys at the end.
const cleanLimit = 15 * time.Second

func (b *bench) clean(ctx context.Context, pin hsm.PIN) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	var cleaned report.Cleaned
	return b.do(ctx, job{name: cleanJob, token: wire.Config{PIN: bytes.Clone(pin)}}, &cleaned)
}

func (b *bench) service(ctx context.Context, pin hsm.PIN, r *report.Bench) error {
	opened, err := pool.Open(ctx, pool.Config{
		Binary: b.hsm.WorkerBinary, Module: b.hsm.Module, TokenLabel: b.hsm.TokenLabel, TokenSerial: b.hsm.TokenSerial,
		InitArgs: b.hsm.InitArgs, PIN: bytes.Clone(pin), Guard: b.guard, Unverified: true, Workers: b.workers, Sessions: b.sessions, Timeout: b.hsm.Timeout.Duration,
		Logger: hclog.New(&hclog.LoggerOptions{Name: "hsm", Level: hclog.Warn, Output: os.Stderr}),
	})
	if err != nil {
		return err
	}
	defer opened.Close()
	g, err := measure.New(ctx, opened)
	if err != nil {
		return err
	}
	for _, op := range b.only {
		for _, callers := range slices.Compact([]int{1, b.callers}) {
			if err := b.measure(ctx, way{op, report.PathService, callers, g.Operation(op)}, r); err != nil {
				return err
			}
		}
	}
	return b.verified(ctx, g, r)
}

// verified measures what verifying a signature adds.
func (b *bench) verified(ctx context.Context, g *measure.Token, r *report.Bench) error {
	if !slices.Contains(b.only, report.Sign) {
		return nil
	}
	both, check, err := g.Verified(ctx)
	if err != nil {
		return err
	}
	if r.Verify, err = measure.Measure(ctx, check, 1, b.time); err != nil {
		return err
	}
	return b.measure(ctx, way{report.Sign, report.PathVerified, b.callers, both}, r)
}

// way is how an operation is measured.
type way struct {
	operation, path string
	callers         int
	call            func(context.Context) error
}

func (b *bench) measure(ctx context.Context, w way, r *report.Bench) error {
	b.progress.Step(fmt.Sprintf("measuring %s through the service, %d at once", w.operation, w.callers))
	stats, err := measure.Measure(ctx, w.call, w.callers, b.time)
	r.Measured = append(r.Measured, report.Measured{Operation: w.operation, Path: w.path, Parallel: w.callers, Stats: stats})
	return err
}

var benchTable = cli.Table[report.Measured]{
	{Title: "Operation", Value: func(m report.Measured) string { return m.Operation }},
	{Title: "Path", Value: func(m report.Measured) string { return m.Path }},
	{Title: "At once", Value: func(m report.Measured) string { return number(m.Parallel) }},
	{Title: "Per second", Value: func(m report.Measured) string { return decimal(m.Rate, 0) }},
	{Title: "p50 us", Value: func(m report.Measured) string { return decimal(m.P50, 0) }},
	{Title: "p90 us", Value: func(m report.Measured) string { return decimal(m.P90, 0) }},
	{Title: "p99 us", Value: func(m report.Measured) string { return decimal(m.P99, 0) }},
	{Title: "Max us", Value: func(m report.Measured) string { return decimal(m.Max, 0) }},
	{Title: "CPU us", Value: func(m report.Measured) string { return decimal(m.CPU, 0) }},
	{Title: "Of raw, 1 thread", Value: func(m report.Measured) string { return percent(m.OfRawOne) }},
	{Title: "Of raw, all sessions", Value: func(m report.Measured) string { return percent(m.OfRawAll) }},
}

func percent(f float64) string {
	if f == 0 {
		return "-"
	}
	return decimal(100*f, 0) + " %"
}

var benchHead = cli.Table[report.Bench]{
	{Title: "Workers", Value: func(b report.Bench) string {
		return number(b.Workers) + " with " + number(b.Sessions) + " sessions each"
	}},
	{Title: "Callers", Value: func(b report.Bench) string { return number(b.Callers) + ", for " + decimal(b.Seconds, 1) + " s each" }},
	{Title: "Verifying P-256", Value: func(b report.Bench) string {
		return decimal(b.Verify.Mean, 1) + " us in software, " + decimal(b.Verify.Rate, 0) + " per second on one core"
	}},
}

func printBench(p cli.Printer, b report.Bench) error {
	if p.Format != cli.FormatTable {
		return benchHead.One(p, b)
	}
	slices.SortStableFunc(b.Measured, func(x, y report.Measured) int {
		return slices.Index(report.Operations, x.Operation) - slices.Index(report.Operations, y.Operation)
	})
	return inParts(p, []func() error{
		func() error { return benchHead.One(p, b) },
		func() error { return benchTable.List(p, b.Measured) },
	})
}
