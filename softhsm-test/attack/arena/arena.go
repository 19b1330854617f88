// Package arena is where the attacks take place: a running appliance, phones and
// devices made of the protocol package alone that say whatever they are told to,
// and the state that an attack must leave as it was.
package arena

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
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

	"countersign/appliance/adminapi"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/device"
)

// Config says where the programs are, and what is broken on purpose.
type Config struct {
	Bin   string
	Out   io.Writer
	Break string
	Quiet int // tries of each class, one after the other
}

// Arena is one appliance under attack.
type Arena struct {
	*rig.Appliance
	*Report
	Break string
	Quiet int

	dir   string
	admin *http.Client // to the admin socket
	https *http.Client // without a client certificate
	db    *sql.DB      // the store, behind the appliance's back
	till  *device.Device
}

// Open starts an appliance. The caller calls Close.
func Open(ctx context.Context, c Config) (*Arena, error) {
	bin, err := rig.Find(c.Bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "countersign-attack-")
	if err != nil {
		return nil, err
	}
	a := &Arena{Report: NewReport(c.Out), Break: c.Break, Quiet: c.Quiet, dir: dir}
	if a.Appliance, err = rig.Start(ctx, rig.Config{Bin: bin, Dir: filepath.Join(dir, "dev")}); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := a.connect(ctx); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *Arena) connect(ctx context.Context) (err error) {
	socket := strings.TrimPrefix(a.Admin, "unix:")
	a.admin = &http.Client{Timeout: callLimit, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	config, err := a.TLS()
	if err != nil {
		return err
	}
	a.https = Client(config)
	source := url.URL{Scheme: "file", Path: filepath.Join(a.dir, "dev", "countersign.db"), RawQuery: "_pragma=busy_timeout(5000)"}
	if a.db, err = sql.Open("sqlite", source.String()); err != nil {
		return err
	}
	a.till, err = a.EnrolDevice(ctx, "till")
	return err
}

// callLimit bounds every call.
const callLimit = 20 * time.Second

// Client makes HTTPS calls with a TLS configuration.
func Client(config *tls.Config) *http.Client {
	return &http.Client{Timeout: callLimit, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
}

// TLS is how an honest caller without a certificate connects.
func (a *Arena) TLS() (*tls.Config, error) {
	raw, err := os.ReadFile(a.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("no certificate in %s", a.CA)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, nil
}

// Till is the device that attacks are made at, if no other is named.
func (a *Arena) Till() *device.Device { return a.till }

// Close stops the appliance and removes what it has left.
func (a *Arena) Close() error {
	if a.db != nil {
		_ = a.db.Close() // nothing is written through it that counts
	}
	_, err := a.Stop()
	return errors.Join(err, os.RemoveAll(a.dir))
}

// Ask calls the admin API: GET without a body, else POST. into may be nil.
func (a *Arena) Ask(ctx context.Context, path string, body, into any) error {
	method, reader := http.MethodGet, io.Reader(nil)
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		method, reader = http.MethodPost, bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+adminapi.Prefix+path, reader)
	if err != nil {
		return err
	}
	res, err := a.admin.Do(req)
	if err != nil {
		return fmt.Errorf("admin API: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("admin API: %s: status %d: %s", path, res.StatusCode, raw)
	}
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// Do is a verb on a client or device: "client/alice/suspend".
func (a *Arena) Do(ctx context.Context, path string) error {
	return a.Ask(ctx, path, struct{}{}, nil)
}

// ClientState is what the admin API tells of a client.
func (a *Arena) ClientState(ctx context.Context, p *Phone) (c adminapi.Client, err error) {
	err = a.Ask(ctx, "client/"+p.Name, nil, &c)
	return c, err
}

// Invitation makes an activation code; path is "client/alice".
func (a *Arena) Invitation(ctx context.Context, path string, i adminapi.Invite) (enrol.ActivationCode, error) {
	var invited adminapi.Invited
	if err := a.Ask(ctx, path+"/invite", i, &invited); err != nil {
		return enrol.ActivationCode{}, err
	}
	return enrol.ParseActivationCode(invited.ActivationCode)
}

// EnrolDevice enrols a device.
func (a *Arena) EnrolDevice(ctx context.Context, name string) (*device.Device, error) {
	code, err := a.Invitation(ctx, "device/"+name, adminapi.Invite{Display: "Countersign dev box"})
	if err != nil {
		return nil, err
	}
	return device.Enrol(ctx, device.Config{URL: a.URL, CA: a.CA}, code.String())
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
func (a *Arena) PostJSON(ctx context.Context, path string, body []byte) (Answer, error) {
	return a.PostAs(ctx, a.https, Post{Path: path, Type: "application/json", Body: body})
}

// Post is a call.
type Post struct {
	Path, Type string
	Body       []byte
}

// PostAs posts to the API through some client. An error is one of the connection.
func (a *Arena) PostAs(ctx context.Context, c *http.Client, p Post) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.URL+p.Path, bytes.NewReader(p.Body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", p.Type)
	res, err := c.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return Answer{}, err
	}
	problem, _ := deviceapi.ParseProblem(raw) // the status tells where there is none
	return Answer{Status: res.StatusCode, Body: raw, Code: problem.Code}, nil
}
