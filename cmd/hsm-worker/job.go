package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/pkcs11"
	"countersign/hsm/pkcs11/probe"
	"countersign/hsm/sheet"
	"countersign/hsm/wire"
)

// jobs are what this program does once instead of serving, by its only argument.
var jobs = map[sheet.Job]func(context.Context, pkcs11.Config, sheet.Order) (any, error){
	sheet.Slots: func(_ context.Context, cfg pkcs11.Config, _ sheet.Order) (any, error) { return probe.List(cfg) },
	sheet.Probe: func(ctx context.Context, cfg pkcs11.Config, o sheet.Order) (any, error) {
		return probe.Run(ctx, cfg, o)
	},
	sheet.Loop: func(ctx context.Context, cfg pkcs11.Config, o sheet.Order) (any, error) {
		return probe.Measure(ctx, cfg, o)
	},
	sheet.Clean: func(_ context.Context, cfg pkcs11.Config, _ sheet.Order) (any, error) { return probe.Clean(cfg) },
}

// farewell is how long a job that nobody waits for any more may take to clean up.
const farewell = 8 * time.Second

// do does one job and reports it.
func do(conn *wire.Socket, name sheet.Job, log hclog.Logger) int {
	cfg, err := wire.ReadConfig(conn)
	if err != nil {
		log.Error("no configuration", "error", err)
		return exitProtocol
	}
	var order sheet.Order
	if err := wire.ReadOrder(conn, &order); err != nil {
		log.Error("no order", "error", err)
		return exitProtocol
	}
	report, err := jobs[name](parentsInterest(conn), config(cfg, log), order)
	if gone := wire.WriteReport(conn, report, err); gone != nil && err == nil {
		err = gone
	}
	switch {
	case errors.Is(err, hsm.ErrPIN):
		return exitPIN
	case err != nil:
		return exitUnavailable
	}
	return exitOK
}

// parentsInterest ends when the parent closes the socket. A module that hangs then
// is left to the kernel.
func parentsInterest(conn *wire.Socket) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // there is nothing more to be said but goodbye
		cancel()
		time.AfterFunc(farewell, func() { os.Exit(exitUnavailable) })
	}()
	return ctx
}
