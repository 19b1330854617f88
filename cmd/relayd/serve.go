package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/durable"
	"countersign/internal/fault"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/relay"
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
	log := newLog(c.Log, cmd.ErrOrStderr())
	stdlog.SetOutput(log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn})) // net/http's own lines
	stdlog.SetFlags(0)
	err = runRelay(cmd, f, c, log)
	if isJSON(c.Log) {
		return cli.EndInLog(log, err)
	}
	return err
}

func newLog(c config.Log, stderr io.Writer) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "relayd", Level: hclog.LevelFromString(c.Level), Output: stderr, JSONFormat: isJSON(c),
	})
}

func isJSON(c config.Log) bool { return c.Format == "json" }

func runRelay(cmd *cobra.Command, f serveFlags, c *config.Relay, log hclog.Logger) error {
	display, err := openDisplay(c, cmd.ErrOrStderr())
	if err != nil {
		return fault.NoDisplay.Of(err)
	}
	defer func() { _ = display.Close() }() // nothing is buffered
	ops, err := listenOps(c.Ops.Listen)
	if err != nil {
		return fault.NoOps.Of(err)
	}
	if ops != nil {
		defer func() { _ = ops.Close() }() // the server may have closed it
	}
	registry := prometheus.NewRegistry()
	rc, err := relayConfig(c)
	if err != nil {
		return err
	}
	rc.Display, rc.Log, rc.Metrics = display, log, relay.NewMetrics(registry)
	r, err := relay.New(rc)
	if err != nil {
		return failure(err)
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if f.onEOF {
		go func() { _, _ = io.Copy(io.Discard, cmd.InOrStdin()); stop() }()
	}
	return serveUntil(ctx, r, daemon{log: log, ops: ops, readyFile: f.readyFile, registry: registry})
}

// daemon has the parts of serve beside the relay.
type daemon struct {
	log       hclog.Logger
	ops       net.Listener // nil: none
	readyFile string
	registry  *prometheus.Registry
}

func serveUntil(ctx context.Context, r *relay.Relay, d daemon) error {
	stopOps := d.serveOps(r)
	defer stopOps()
	if err := writeReady(d.readyFile, r); err != nil {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(fault.NoReadyFile.Of(err), r.Serve(ended))
	}
	identity := r.Identity()
	d.log.Info("serving", "links", r.Links(), "device_id", identity.ID.String(), "name", identity.Name)
	err := r.Serve(ctx)
	d.log.Info("stopped")
	return fault.JournalStopped.Of(err)
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

// openDisplay opens what shows approvals. On standard error they are lines of the log, if that is JSON.
func openDisplay(c *config.Relay, stderr io.Writer) (io.WriteCloser, error) {
	switch {
	case c.Display == "":
		return nopCloser{io.Discard}, nil
	case c.Display == "-" && isJSON(c.Log):
		always := c.Log
		always.Level = "info"
		return nopCloser{logDisplay{newLog(always, stderr)}}, nil
	case c.Display == "-":
		return nopCloser{stderr}, nil
	}
	f, err := os.OpenFile(c.Display, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening display: %w", err)
	}
	return fileDisplay{cli.NewLines(f), f}, nil
}

// logDisplay shows each approval as a line of the log.
type logDisplay struct{ log hclog.Logger }

func (d logDisplay) Write(line []byte) (int, error) {
	d.log.Info("display", "text", strings.TrimSpace(string(line)))
	return len(line), nil
}

// fileDisplay is a file, FIFO or terminal that shows approvals. No act waits for it.
type fileDisplay struct {
	*cli.Lines
	file *os.File
}

func (d fileDisplay) Close() error { return errors.Join(d.Lines.Close(), d.file.Close()) }

// checkHook returns an error with exit code 78 if the hook cannot be started.
func checkHook(c *config.Relay) error {
	return fault.NoHook.Of(relay.Hook{Command: c.Hook.Command}.Check())
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

// listenOps listens for monitoring; nil without an address.
func listenOps(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening for operators: %w", err)
	}
	return listener, nil
}

// serveOps serves /livez, /readyz and /metrics if there is a listener for them.
func (d daemon) serveOps(r *relay.Relay) (stop func()) {
	if d.ops == nil {
		return func() {}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { ready(w, r) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.registry, promhttp.HandlerOpts{}))
	server := &http.Server{
		Handler: mux, ReadTimeout: opsTimeout, WriteTimeout: opsTimeout, IdleTimeout: opsTimeout,
	}
	go func() {
		if err := server.Serve(d.ops); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("ops listener failed", "error", err)
		}
	}()
	d.log.Info("serving operators", "listen", d.ops.Addr().String())
	return func() { _ = server.Close() }
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
