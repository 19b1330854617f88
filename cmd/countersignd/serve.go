package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/version"
)

func serveCommand(path *string) *cobra.Command {
	return &cobra.Command{
		Use: "serve", Args: cobra.NoArgs, Short: "Serve until SIGTERM",
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd, *path) },
	}
}

// serve runs the daemon. Once there is a log, it has the start and the end. The error that ends a daemon whose log is
// JSON is a line of it.
func serve(cmd *cobra.Command, path string) error {
	cfg, err := config.LoadAppliance(path)
	if err != nil {
		return err
	}
	env := environmentOf(cmd, cfg.Log)
	logStart(env.log, path, cfg)
	stopped := whenStopped(cmd.Context())
	err = end(opener(openParts).on(cmd.Context(), cfg, env, func(ctx context.Context, p *parts) error {
		if !p.locked() {
			if err := p.host(cfg, environment{}).Tidy(ctx, p.token); err != nil {
				return err
			}
		}
		d, err := newDaemon(ctx, cfg, p)
		if err != nil {
			return err
		}
		return d.run(ctx)
	}))
	switch {
	case err == nil:
		logStop(cmd.Context(), env.log, stopped())
	case cfg.Log.Format == "json":
		return cli.EndInLog(env.log, err)
	}
	return err
}

// end returns the result of a daemon. A daemon that is stopped while it starts has not failed.
func end(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return explain(err)
}

// whenStopped returns a function that returns the time at which ctx ended, or the time of the call if it has not ended.
func whenStopped(ctx context.Context) func() time.Time {
	at := make(chan time.Time, 1)
	stop := context.AfterFunc(ctx, func() { at <- time.Now() })
	return func() time.Time {
		if stop() { // ctx has not ended
			return time.Now()
		}
		return <-at
	}
}

// logStart says what starts, with which configuration and tokens.
func logStart(log hclog.Logger, path string, cfg *config.Appliance) {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	var labels, modules []string
	for _, t := range cfg.HSM.Tokens() {
		labels, modules = append(labels, t.TokenLabel), append(modules, t.Module)
	}
	v := version.Of("countersignd")
	log.Info("starting", "version", v.Version, "commit", v.Commit, "go", v.Go, "config", path,
		"token_labels", labels, "modules", modules)
}

// logStop says why a daemon was stopped, and how long it drained since then.
func logStop(ctx context.Context, log hclog.Logger, since time.Time) {
	log.Info("stopped", "reason", context.Cause(ctx), "drained_in", time.Since(since).String())
}
