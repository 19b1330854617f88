package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"countersign/relay"
)

// opsTimeout bounds how long a monitoring client can hold a connection up.
const opsTimeout = 5 * time.Second

// serveOps serves /livez, /readyz and /metrics where an address is configured.
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

// ready is about the one thing that a relay depends on.
func ready(w http.ResponseWriter, r *relay.Relay) {
	w.Header().Set("Content-Type", "application/json")
	if r.Reachable() {
		fmt.Fprintln(w, `{"appliance":"reachable"}`)
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintln(w, `{"appliance":"not reachable"}`)
}
