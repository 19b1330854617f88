// Package httpapi puts the appliance's doors on listeners: the API for phones and
// devices over TLS 1.3, the admin API on a Unix socket, and health and metrics on
// loopback. Handlers come in two halves: here identity, bounds, decoding, encoding
// and the one table from errors to answers; what a request means is decided in
// package appliance.
package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
)

// Timeouts of every listener: slow senders are cut off.
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
	TLS      *tls.Config // nil: plain
}

// Serve runs servers until ctx ends, then lets what is under way finish for one
// second. It returns the first error that is not the end of ctx.
func Serve(ctx context.Context, log hclog.Logger, servers ...Server) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		server := s.http(log.Named(s.Name))
		group.Go(func() error { return s.serve(server) })
		group.Go(func() error {
			<-ctx.Done()
			return shutdown(server)
		})
		log.Info("listening", "listener", s.Name, "address", s.Listener.Addr().String())
	}
	return group.Wait()
}

func (s Server) http(log hclog.Logger) *http.Server {
	return &http.Server{
		Handler: s.Handler, TLSConfig: s.TLS,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
}

func (s Server) serve(server *http.Server) error {
	var err error
	if s.TLS != nil {
		err = server.ServeTLS(s.Listener, "", "")
	} else {
		err = server.Serve(s.Listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func shutdown(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return server.Close()
	}
	return nil
}
