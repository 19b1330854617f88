package main

import (
	"context"
	"fmt"
	"net"

	"countersign/appliance/httpapi"
	"countersign/cmd/internal/config"
)

// listen opens the three listeners: api, admin, ops.
func (d *daemon) listen(ctx context.Context, cfg *config.Appliance) error {
	var lc net.ListenConfig
	api, err := lc.Listen(ctx, "tcp", cfg.API.Listen)
	if err != nil {
		return fmt.Errorf("api.listen: %w", err)
	}
	ops, err := lc.Listen(ctx, "tcp", cfg.Ops.Listen)
	if err != nil {
		return fmt.Errorf("ops.listen: %w", err)
	}
	socket, err := httpapi.ListenUnix(cfg.Admin.Socket)
	if err != nil {
		return fmt.Errorf("admin.socket: %w", err)
	}
	apiHandler := &httpapi.API{Appliance: d.appliance, Logger: d.log.Named("api")}
	adminHandler := &httpapi.Admin{Appliance: d.appliance, HSM: d.hsmStatus, Logger: d.log.Named("admin")}
	opsHandler := &httpapi.Ops{Checks: d.checks(), Warnings: map[string]httpapi.Check{"keys": d.appliance.KeysReady}, Gatherer: d.metrics}
	d.servers = []httpapi.Server{
		{Name: "api", Listener: api, Handler: apiHandler.Handler(), TLS: d.identity.TLSConfig()},
		{Name: "admin", Listener: socket, Handler: adminHandler.Handler()},
		{Name: "ops", Listener: ops, Handler: opsHandler.Handler()},
	}
	return nil
}

// address of a listener by its name.
func (d *daemon) address(name string) string {
	for _, s := range d.servers {
		if s.Name == name {
			return s.Listener.Addr().String()
		}
	}
	return ""
}
