package main

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"countersign/appliance/httpapi"
	"countersign/internal/config"
)

// listeners are the daemon's three.
type listeners struct{ api, admin, ops net.Listener }

// listen opens them; nothing is served yet.
func listen(ctx context.Context, cfg *config.Appliance) (l listeners, err error) {
	var lc net.ListenConfig
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.api, err = lc.Listen(ctx, "tcp", cfg.API.Listen); err != nil {
		return l, fmt.Errorf("api.listen: %w", err)
	}
	if l.ops, err = lc.Listen(ctx, "tcp", cfg.Ops.Listen); err != nil {
		return l, fmt.Errorf("ops.listen: %w", err)
	}
	if l.admin, err = httpapi.ListenUnix(cfg.Admin.Socket); err != nil {
		return l, fmt.Errorf("admin.socket: %w", err)
	}
	return l, nil
}

func (l listeners) close() {
	for _, one := range []net.Listener{l.api, l.admin, l.ops} {
		if one != nil {
			_ = one.Close() // nothing was served on it, or it is closed already
		}
	}
}

func (d *daemon) hsmAPI() httpapi.HSM {
	return httpapi.HSM{Status: d.hsmTokens, Unlock: d.unlock, Drain: d.drain, Logger: d.log.Named("admin")}
}

func (d *daemon) adminHandler() http.Handler {
	admin := &httpapi.Admin{
		Appliance: d.appliance, Summary: d.hsmStatus, HSM: d.hsmAPI(), Logger: d.log.Named("admin"),
	}
	return admin.Handler()
}

func (d *daemon) adminServer(h http.Handler) httpapi.Server {
	return httpapi.Server{Name: "admin", Listener: d.listeners.admin, Handler: h}
}

func (d *daemon) opsServer() httpapi.Server {
	ops := &httpapi.Ops{Checks: d.checks(), Warnings: d.warnings(), Gatherer: d.metrics}
	return httpapi.Server{Name: "ops", Listener: d.listeners.ops, Handler: ops.Handler()}
}

func (d *daemon) apiServer() httpapi.Server {
	api := &httpapi.API{Appliance: d.appliance, Logger: d.log.Named("api")}
	return httpapi.Server{Name: "api", Listener: d.listeners.api, Handler: api.Handler(), TLS: d.identity.TLSConfig()}
}
