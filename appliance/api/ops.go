package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

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
