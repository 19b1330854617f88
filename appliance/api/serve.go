package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// Timeouts of every listener. They cut off slow senders; a TLS handshake has the time of a header.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 15 * time.Second
	idleTimeout   = 2 * time.Minute
	drainTimeout  = time.Second
)

// Server is one listener with its handler.
type Server struct {
	Name     string // for logs: "api", "admin", "ops"
	Listener net.Listener
	Handler  http.Handler
	// ConnContext adds to the context of the requests of a connection, as in [http.Server]; may be nil.
	ConnContext func(context.Context, net.Conn) context.Context

	Identity *Identity // nil: plain HTTP, and the following fields do not count
	Limits   Limits
	Metrics  *Metrics
	times    times // zero: the usual ones
}

// Serve runs servers until ctx ends, then gives the requests in progress one second to finish. It returns the first
// error other than the end of ctx.
func Serve(ctx context.Context, log hclog.Logger, servers ...Server) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		server := s.http(log.Named(s.Name))
		group.Go(func() error { return s.serve(server, log.Named(s.Name)) })
		group.Go(func() error {
			<-ctx.Done()
			return shutdown(server)
		})
		log.Info("listening", "listener", s.Name, "address", s.Listener.Addr().String())
	}
	return group.Wait()
}

// maxStreams is how many requests one HTTP/2 connection may have in progress: RFC 9113 §6.5.2 recommends no fewer.
const maxStreams = 100

func (s Server) http(log hclog.Logger) *http.Server {
	server := &http.Server{
		Handler:           s.Handler,
		ConnContext:       s.ConnContext,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	if s.Identity == nil {
		return server
	}
	server.Handler = attended(s.Handler)
	server.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxStreams}
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c.(*tls.Conn).NetConn())
	}
	if s.times.idle != 0 {
		server.IdleTimeout = s.times.idle
	}
	return server
}

func (s Server) serve(server *http.Server, log hclog.Logger) error {
	listener := s.Listener
	if s.Identity != nil {
		if s.times == (times{}) {
			s.times = usual
		}
		listener = newDoor(s, log)
	}
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func shutdown(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return server.Close()
	}
	return nil
}

// Switch is a handler that can be replaced while it serves.
type Switch struct{ current atomic.Pointer[http.Handler] }

// NewSwitch returns a switch that uses h first.
func NewSwitch(h http.Handler) *Switch {
	s := &Switch{}
	s.Use(h)
	return s
}

// Use sets the handler of all requests that arrive from now on.
func (s *Switch) Use(h http.Handler) { s.current.Store(&h) }

func (s *Switch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*s.current.Load()).ServeHTTP(w, r)
}

// Check returns nil if a dependency can be used now.
type Check func(ctx context.Context) error

// Ops serves health and metrics in plain HTTP, on loopback.
type Ops struct {
	Checks   map[string]Check // by dependency: "hsm", "store", "keys_in_use"
	Warnings map[string]Check // shown in /readyz without making the appliance unready: "keys"
	Gatherer prometheus.Gatherer
}

// checkTimeout bounds all checks of one request together.
const checkTimeout = time.Second

// Handler returns the handler of /livez, /readyz and /metrics.
func (o *Ops) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeHealth(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", o.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{}))
	return mux
}

// ready answers 200 if every dependency can be used, else 503, with the state of each dependency and the warnings.
func (o *Ops) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	status, reasons := http.StatusOK, map[string]string{}
	for name, check := range o.Checks {
		reasons[name] = "ok"
		if err := check(ctx); err != nil {
			status, reasons[name] = http.StatusServiceUnavailable, err.Error()
		}
	}
	for name, check := range o.Warnings {
		reasons[name] = "ok"
		if err := check(ctx); err != nil {
			reasons[name] = "warning: " + err.Error()
		}
	}
	writeHealth(w, status, reasons)
}

func writeHealth(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // an error means that the peer is gone
}
