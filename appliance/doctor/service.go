package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"countersign/appliance/adminapi"
	"countersign/appliance/keyuse"
	"countersign/internal/cli"
)

// service checks HSM and store. A running daemon has the store's lock and the token's login, so it checks them itself;
// without a daemon this process opens them.
func (d *doctor) service(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	if _, running := d.daemonPID(); running {
		d.ok("daemon", "answers on "+d.cfg.Admin.Socket)
		d.askDaemon(ctx)
		d.tlsIdentity(ctx)
		return
	}
	d.warns("daemon", "no daemon answers on "+d.cfg.Admin.Socket,
		"countersignd serve; HSM and store were opened for this examination")
	if _, refused := d.pinRefused(); refused {
		return // guard reported it
	}
	if _, err := os.Stat(d.cfg.Store.Path); errors.Is(err, fs.ErrNotExist) {
		d.refuses("store", fmt.Errorf("%s is not there", d.cfg.Store.Path), cli.Failed, "run countersignd init")
		return
	}
	found, err := d.Open(ctx, d.cfg)
	if err != nil {
		d.fails("service", err)
	}
	d.found = append(d.found, found...)
}

func (d *doctor) askDaemon(ctx context.Context) {
	found, err := adminapi.Routes.Doctor.Call(ctx, adminapi.NewCaller("unix", d.cfg.Admin.Socket), adminapi.None{})
	if err != nil {
		d.refuses("service", fmt.Errorf("examining the daemon: %w", err), cli.Unavailable,
			"read its log; /readyz and countersignctl hsm status show which part is unavailable")
	}
	d.found = append(d.found, found...)
}

// tlsIdentity connects to the listener as a device does, with the authorities of ca.pem.
func (d *doctor) tlsIdentity(ctx context.Context) {
	const advice = "the daemon renews it by itself: its log says why it did not; it writes ca.pem when it starts"
	text, err := os.ReadFile(filepath.Join(d.cfg.StateDir, "ca.pem"))
	if err != nil {
		d.refuses("certificate", err, cli.IO, advice)
		return
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	_, port, err := net.SplitHostPort(d.cfg.API.Listen)
	if err != nil || port == "0" {
		d.ok("certificate", "not checked: api.listen leaves the port to the system")
		return
	}
	dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: d.serverName()}}
	conn, err := dialer.DialContext(ctx, "tcp", d.cfg.API.Listen)
	if err != nil {
		d.refuses("certificate", fmt.Errorf("api.listen: %w", err), cli.Unavailable, advice)
		return
	}
	defer func() { _ = conn.Close() }() // nothing was sent
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	detail := fmt.Sprintf("of %s, good until %s", d.cfg.API.Listen, leaf.NotAfter.UTC().Format(time.RFC3339))
	if time.Until(leaf.NotAfter) < keyuse.ServerCertLife/4 {
		d.warns("certificate", detail, advice)
		return
	}
	d.ok("certificate", detail)
}

// serverName returns a name in the certificate: a DNS name if there is one.
func (d *doctor) serverName() string {
	if names := d.cfg.API.Names; len(names) > 0 {
		return names[0]
	}
	if ips := d.cfg.API.IPs; len(ips) > 0 {
		return ips[0].String()
	}
	return ""
}
