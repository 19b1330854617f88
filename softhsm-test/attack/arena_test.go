package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver of the store

	"countersign/appliance/admin"
	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
)

// Arena is one appliance under attack.
type Arena struct {
	*harness.Appliance
	*harness.Report

	admin *http.Client // to the admin socket
	https *http.Client // without a client certificate
	db    *sql.DB      // the store, not through the appliance
	till  *device.Device
}

// openArena starts an appliance.
func openArena(r *harness.Report) *Arena {
	a := &Arena{Report: r}
	dir := filepath.Join(harness.TempDir(r.T()), "dev")
	a.Appliance = harness.Must(harness.Start(r.Context(), harness.Config{Bin: harness.Must(harness.Built()), Dir: dir}))
	a.connect(r.Context())
	return a
}

func (a *Arena) connect(ctx context.Context) {
	socket := strings.TrimPrefix(a.Admin, "unix:")
	a.admin = &http.Client{Timeout: callLimit, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	config := a.TLS()
	a.https = Client(config)
	source := url.URL{Scheme: "file", Path: filepath.Join(a.Config.Dir, "countersign.db"), RawQuery: "_pragma=busy_timeout(5000)"}
	a.db = harness.Must(sql.Open("sqlite", source.String()))
	a.till = a.EnrolDevice(ctx, "till")
}

// callLimit bounds every call.
const callLimit = 20 * time.Second

// Client makes HTTPS calls with a TLS configuration.
func Client(config *tls.Config) *http.Client {
	return &http.Client{Timeout: callLimit, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
}

// TLS is how an honest caller without a certificate connects.
func (a *Arena) TLS() *tls.Config {
	raw := harness.Must(os.ReadFile(a.CA))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		harness.Fail("no certificate in %s", a.CA)
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
}

// Till is the device that attacks are made at, if no other is named.
func (a *Arena) Till() *device.Device { return a.till }

// Ask calls the admin API: GET without a body, else POST. into may be nil.
func (a *Arena) Ask(ctx context.Context, path string, body, into any) {
	method, reader := http.MethodGet, io.Reader(nil)
	if body != nil {
		raw := harness.Must(json.Marshal(body))
		method, reader = http.MethodPost, bytes.NewReader(raw)
	}
	req := harness.Must(http.NewRequestWithContext(ctx, method, "http://admin"+admin.Prefix+path, reader))
	res := harness.Must(a.admin.Do(req))
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("admin API: %s: status %d: %s", path, res.StatusCode, raw)
	}
	if err != nil || into == nil {
		harness.Do(err)
		return
	}
	harness.Do(json.Unmarshal(raw, into))
}

// Do is a verb on a client or device: "client/alice/suspend".
func (a *Arena) Do(ctx context.Context, path string) {
	a.Ask(ctx, path, struct{}{}, nil)
}

// ClientState returns a client as the admin API describes it.
func (a *Arena) ClientState(ctx context.Context, p *Phone) (c admin.Client) {
	a.Ask(ctx, "client/"+p.Name, nil, &c)
	return c
}

// Invitation makes an activation code; path is "client/alice".
func (a *Arena) Invitation(ctx context.Context, path string, i admin.Invite) protocol.ActivationCode {
	var invited admin.Invited
	a.Ask(ctx, path+"/invite", i, &invited)
	return harness.Must(protocol.ParseActivationCode(invited.ActivationCode))
}

// EnrolDevice enrols a device.
func (a *Arena) EnrolDevice(ctx context.Context, name string) *device.Device {
	code := a.Invitation(ctx, "device/"+name, admin.Invite{Display: "Countersign dev box"})
	return harness.Must(device.Enrol(ctx, device.Config{URL: a.URL, CA: a.CA}, code.String()))
}

// Answer is what came back over HTTPS.
type Answer struct {
	Status int
	Body   []byte
	Code   protocol.Code // of problem+json, 0: none
}

// Verdict of a JSON call.
func (a Answer) Verdict() Verdict { return HTTP(a.Status, a.Code) }

// PostJSON posts to the API without a client certificate.
func (a *Arena) PostJSON(ctx context.Context, path string, body []byte) Answer {
	return a.PostAs(ctx, a.https, Post{Path: path, Type: "application/json", Body: body})
}

// Post is a call.
type Post struct {
	Path, Type string
	Body       []byte
}

// PostAs posts to the API through some client. An error is one of the connection.
func (a *Arena) PostAs(ctx context.Context, c *http.Client, p Post) Answer {
	req := harness.Must(http.NewRequestWithContext(ctx, http.MethodPost, a.URL+p.Path, bytes.NewReader(p.Body)))
	req.Header.Set("Content-Type", p.Type)
	res := harness.Must(c.Do(req))
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw := harness.Must(io.ReadAll(res.Body))
	problem, _ := protocol.ParseProblem(raw) // without a problem the status is enough
	return Answer{Status: res.StatusCode, Body: raw, Code: problem.Code}
}
