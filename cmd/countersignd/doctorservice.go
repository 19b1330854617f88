package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"countersign/appliance"
	"countersign/appliance/admin"
	"countersign/appliance/anchor"
	"countersign/appliance/httpapi"
	"countersign/appliance/keyring"
	"countersign/internal/cli"
)

// service examines HSM and store: a daemon that runs does it itself, since it has the
// store's lock and the token's login; without one they are opened here.
func (d *doctor) service(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, running := d.daemonPID(); running {
		d.ok("daemon", "answers on "+d.cfg.Admin.Socket)
		d.askDaemon(ctx)
		d.tlsIdentity(ctx)
		return
	}
	d.warns("daemon", "nobody answers on "+d.cfg.Admin.Socket, "countersignd serve; HSM and store were opened for this examination")
	if _, up := d.pinRefused(); up {
		return // the guard was told of
	}
	if _, err := os.Stat(d.cfg.Store.Path); errors.Is(err, fs.ErrNotExist) {
		d.refuses("store", fmt.Errorf("%s is not there", d.cfg.Store.Path), cli.Failed, "run countersignd init")
		return
	}
	d.open(ctx)
}

// maxFindings bounds the daemon's answer, bytes.
const maxFindings = 1 << 20

func (d *doctor) askDaemon(ctx context.Context) {
	found, err := d.ask(ctx)
	if err != nil {
		d.refuses("service", fmt.Errorf("asking the daemon: %w", err), cli.Unavailable, "look at its log; /readyz and countersignctl hsm status tell which part is away")
		return
	}
	d.found = append(d.found, found...)
}

func (d *doctor) ask(ctx context.Context) ([]admin.Examination, error) {
	var dialer net.Dialer
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", d.cfg.Admin.Socket)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://appliance"+admin.Prefix+"doctor", nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // it was read, or an error is returned
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", res.Status)
	}
	var found []admin.Examination
	return found, json.NewDecoder(http.MaxBytesReader(nil, res.Body, maxFindings)).Decode(&found)
}

// tlsIdentity looks at the listener as a device does, by the authorities of ca.pem.
func (d *doctor) tlsIdentity(ctx context.Context) {
	const advice = "the daemon renews it by itself: its log says why it could not; ca.pem is written anew at its start"
	text, err := os.ReadFile(filepath.Join(d.cfg.StateDir, "ca.pem"))
	if err != nil {
		d.refuses("certificate", err, cli.IO, advice)
		return
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	_, port, err := net.SplitHostPort(d.cfg.API.Listen)
	if err != nil || port == "0" {
		d.ok("certificate", "not looked at: api.listen leaves the port to the system")
		return
	}
	dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: serverName(d.cfg.API.Names, tlsNames(d.cfg.API))}}
	conn, err := dialer.DialContext(ctx, "tcp", d.cfg.API.Listen)
	if err != nil {
		d.refuses("certificate", fmt.Errorf("api.listen: %w", err), cli.Unavailable, advice)
		return
	}
	defer func() { _ = conn.Close() }() // nothing was sent
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	detail := fmt.Sprintf("of %s, good until %s", d.cfg.API.Listen, leaf.NotAfter.UTC().Format(time.RFC3339))
	if time.Until(leaf.NotAfter) < keyring.ServerCertLife/4 {
		d.warns("certificate", detail, advice)
		return
	}
	d.ok("certificate", detail)
}

// serverName is a name that the certificate has, a DNS name if there is one.
func serverName(dns, all []string) string {
	for _, name := range append(append([]string{}, dns...), all...) {
		return name
	}
	return ""
}

// open examines store and token without a daemon. The PIN is tried once.
func (d *doctor) open(ctx context.Context) {
	p, err := openParts(ctx, d.cfg, d.from)
	if err != nil {
		d.fails("service", err)
		return
	}
	found, err := d.examineParts(ctx, p)
	if err != nil {
		d.fails("service", err)
	}
	d.found = append(d.found, found...)
	if err := p.close(); err != nil {
		d.fails("store", err)
	}
}

func (d *doctor) examineParts(ctx context.Context, p *parts) ([]admin.Examination, error) {
	looks := keyring.Pins{Anchor: anchor.InMemory(p.anchor.Current()), Root: p.root} // an examination moves nothing
	keys, err := p.registry(ctx, looks)
	if err != nil {
		return nil, err
	}
	a, err := appliance.New(ctx, appliance.Config{Store: p.store, Keys: keys, Schedule: schedule(d.cfg.Keys), Logger: p.log})
	if err != nil {
		return nil, err
	}
	return httpapi.Examinations(ctx, a), nil
}
