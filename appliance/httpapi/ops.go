package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check tells whether one dependency can be used now; nil is yes.
type Check func(ctx context.Context) error

// Ops serves health and metrics, on loopback, in plain HTTP.
type Ops struct {
	Checks   map[string]Check // by dependency: "hsm", "store", "keys_in_use"
	Warnings map[string]Check // told in /readyz, and no reason not to be ready: "keys"
	Gatherer prometheus.Gatherer
}

// checkTimeout bounds one look at all dependencies.
const checkTimeout = time.Second

// Handler of /livez, /readyz and /metrics.
func (o *Ops) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeHealth(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", o.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{}))
	return mux
}

// ready answers 200 when every dependency can be used, else 503, with a reason for
// each, and warnings.
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
	_ = json.NewEncoder(w).Encode(v) // the peer is gone: nothing to do
}
