package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/durable"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/relay"
	"countersign/relay/journal"
)

type serveFlags struct {
	config    string
	readyFile string
	onEOF     bool
}

func serve() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the device until a signal stops it",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runServe(cmd, f) },
	}
	addConfigFlag(cmd, &f.config)
	cmd.Flags().StringVar(&f.readyFile, "ready-file", "",
		"write this file once phones can connect: {\"link\", \"links\", \"device_id\"}")
	cmd.Flags().BoolVar(&f.onEOF, "exit-on-stdin-eof", false, "stop when standard input ends, for parent processes")
	return cmd
}

func addConfigFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", "relay.toml", "configuration file")
}

func runServe(cmd *cobra.Command, f serveFlags) error {
	c, err := config.LoadRelay(f.config)
	if err != nil {
		return err
	}
	display, err := openDisplay(c.Display, cmd.ErrOrStderr())
	if err != nil {
		return cli.Fail(cli.IO, err, "")
	}
	defer func() { _ = display.Close() }() // nothing is buffered
	log := hclog.New(&hclog.LoggerOptions{
		Name: "relayd", Level: hclog.LevelFromString(c.Log.Level), Output: cmd.ErrOrStderr(),
		JSONFormat: c.Log.Format == "json",
	})
	registry := prometheus.NewRegistry()
	rc, err := relayConfig(c)
	if err != nil {
		return cli.Fail(cli.Config, err, "")
	}
	rc.Display, rc.Log, rc.Metrics = display, log, relay.NewMetrics(registry)
	r, err := relay.New(rc)
	if err != nil {
		return openFailure(err)
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if f.onEOF {
		go func() { _, _ = io.Copy(io.Discard, cmd.InOrStdin()); stop() }()
	}
	return serveUntil(ctx, r, daemon{log: log, ops: c.Ops.Listen, readyFile: f.readyFile, registry: registry})
}

// daemon has the parts of serve beside the relay.
type daemon struct {
	log       hclog.Logger
	ops       string
	readyFile string
	registry  *prometheus.Registry
}

func serveUntil(ctx context.Context, r *relay.Relay, d daemon) error {
	stopOps, err := d.serveOps(r)
	if err == nil {
		defer stopOps()
		err = writeReady(d.readyFile, r)
	}
	if err != nil {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(cli.Fail(cli.IO, err, ""), r.Serve(ended))
	}
	identity := r.Identity()
	d.log.Info("serving", "links", r.Links(), "device_id", identity.ID.String(), "name", identity.Name)
	err = r.Serve(ctx)
	d.log.Info("stopped")
	return cli.Fail(cli.IO, err, "find out why the journal in the state directory cannot be written")
}

func openFailure(err error) error {
	var path *os.PathError
	switch {
	case errors.Is(err, journal.ErrCorrupt):
		return cli.Fail(cli.IO, err,
			"without its journal the device could act twice: examine the file before you move it away")
	case errors.As(err, &path):
		return cli.Fail(cli.IO, err, "")
	}
	return failure(err)
}

// writeReady writes the addresses for phones to a file for the parent process.
func writeReady(name string, r *relay.Relay) error {
	if name == "" {
		return nil
	}
	links := r.Links()
	raw, err := json.Marshal(map[string]any{"link": links[0], "links": links, "device_id": r.Identity().ID.String()})
	if err != nil {
		return err
	}
	return durable.Publish(name, append(raw, '\n'), 0o600)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func openDisplay(name string, stderr io.Writer) (io.WriteCloser, error) {
	switch name {
	case "":
		return nopCloser{io.Discard}, nil
	case "-":
		return nopCloser{stderr}, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening display: %w", err)
	}
	return fileDisplay{cli.NewLines(f), f}, nil
}

// fileDisplay is a file, FIFO or terminal that shows approvals. No act waits for it.
type fileDisplay struct {
	*cli.Lines
	file *os.File
}

func (d fileDisplay) Close() error { return errors.Join(d.Lines.Close(), d.file.Close()) }

// checkHook returns an error with exit code 78 if the hook cannot be started.
func checkHook(c *config.Relay) error {
	return cli.Fail(cli.Config, relay.Hook{Command: c.Hook.Command}.Check(), "correct hook.command, or the program that it names")
}

// relayConfig converts the configuration file.
func relayConfig(c *config.Relay) (relay.Config, error) {
	r := relay.Config{
		StateDir: c.StateDir, URL: c.Appliance.URL, CAFile: c.Appliance.CA, Floor: protocol.Level(c.Floor),
		Strict: c.Strict, ApprovalWait: c.Order.ApprovalWait.Duration,
		Hook: relay.Hook{Command: c.Hook.Command, Timeout: c.Hook.Timeout.Duration, Environment: c.Hook.Environment},
	}
	for _, l := range c.Links {
		class, err := deviceapi.ParseLinkClass(l.Class)
		if err != nil {
			return r, err
		}
		r.Links = append(r.Links, relay.Link{Listen: l.Listen.String(), Class: class})
	}
	switch c.Order.Source {
	case config.OrderSocket:
		r.Orders.Socket = c.Order.Socket
	case config.OrderStatic:
		r.Orders.Static = staticOrder(c.Order.Static)
	default:
		for _, id := range c.Accept {
			r.Orders.Accept = append(r.Orders.Accept, protocol.Service(id))
		}
	}
	return r, nil
}

func staticOrder(o config.StaticOrder) *deviceapi.Order {
	services := []protocol.Service{protocol.Service(o.Service)}
	order := &deviceapi.Order{Services: services, Text: o.Text, Reference: o.Reference}
	if o.Currency != "" {
		order.Amount = &protocol.Amount{Minor: o.AmountMinor, Currency: o.Currency}
	}
	return order
}

// opsTimeout limits how long a monitoring client can keep a connection.
const opsTimeout = 5 * time.Second

// serveOps serves /livez, /readyz and /metrics if an address is configured.
func (d daemon) serveOps(r *relay.Relay) (stop func(), err error) {
	if d.ops == "" {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", d.ops)
	if err != nil {
		return nil, fmt.Errorf("listening for operators: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { ready(w, r) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadTimeout: opsTimeout, WriteTimeout: opsTimeout, IdleTimeout: opsTimeout}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("ops listener failed", "error", err)
		}
	}()
	d.log.Info("serving operators", "listen", listener.Addr().String())
	return func() { _ = server.Close() }, nil
}

// ready reports whether the appliance is reachable and the hook can be started.
func ready(w http.ResponseWriter, r *relay.Relay) {
	w.Header().Set("Content-Type", "application/json")
	state, code := map[string]string{"appliance": "reachable", "hook": "ok"}, http.StatusOK
	if p := r.ApplianceProblem(); p != "" || !r.Reachable() {
		state["appliance"], code = cmp.Or(p, "not reachable"), http.StatusServiceUnavailable
	}
	if err := r.CheckHook(); err != nil {
		state["hook"], code = err.Error(), http.StatusServiceUnavailable
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(state) // an error means that the peer is gone
}
