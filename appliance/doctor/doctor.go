// Package doctor examines an installation: configuration, files, host, HSM and store. A running daemon examines HSM
// and store itself, when it is asked; without one the doctor opens both. It changes nothing.
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
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"countersign/appliance/adminapi"
	"countersign/appliance/keyuse"
	"countersign/internal/config"
	"countersign/internal/fault"
)

// Config has the values of the command line and of the daemon's wiring.
type Config struct {
	Path         string // of the configuration file
	AnchorPath   func(*config.Appliance) string
	WorkerBinary func(*config.Appliance) (string, error)
	LeastFree    uint64        // bytes of free disk below which the daemon is not ready
	Timeout      time.Duration // bounds the examination of HSM and store
	// Explain gives an error its exit code and advice.
	Explain func(error) error
	// Open examines store and token in this process. It tries the PIN once, and changes neither store nor anchor.
	Open func(ctx context.Context, cfg *config.Appliance) ([]adminapi.Examination, error)
}

// doctor collects examinations.
type doctor struct {
	Config
	cfg   *config.Appliance
	found []adminapi.Examination
}

// Examine makes every check. If the configuration cannot be read it makes no other check.
func Examine(ctx context.Context, c Config) []adminapi.Examination {
	d := &doctor{Config: c}
	cfg, err := config.LoadAppliance(c.Path)
	if err != nil {
		d.fails("configuration", err)
		return d.found
	}
	d.cfg = cfg
	d.ok("configuration", c.Path)
	if err := enters(cfg.StateDir); err != nil {
		d.fails("state_dir", fault.DoctorNoEntry.Of(err))
		d.host()
		return d.found
	}
	d.files()
	d.host()
	d.service(ctx)
	return d.found
}

// enters returns an error if this user may not list and enter a directory. It returns nil for a directory that is
// missing.
func enters(dir string) error {
	err := unix.Access(dir, unix.R_OK|unix.X_OK)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return &fs.PathError{Op: "access", Path: dir, Err: err}
}

func (d *doctor) ok(check, detail string) {
	d.found = append(d.found, adminapi.Examination{Check: check, Status: adminapi.CheckOK, Detail: detail})
}

// warns reports a row of the table of errors, of which only text and advice count.
func (d *doctor) warns(check string, row fault.Row) {
	d.found = append(d.found, adminapi.Examination{Check: check, Status: adminapi.CheckWarn, Detail: row.Text, Advice: row.Advice})
}

// fails reports an error with the exit code and advice that the program would have for it.
func (d *doctor) fails(check string, err error) {
	e := adminapi.Examination{Check: check, Status: adminapi.CheckFail, Detail: err.Error(), ExitCode: int(fault.Failed)}
	var known interface {
		error
		ExitCode() int
		Hint() string
	}
	if errors.As(d.Explain(err), &known) {
		e.ExitCode, e.Advice = known.ExitCode(), known.Hint()
	}
	d.found = append(d.found, e)
}

// classes are the exit codes of failures, the most urgent first.
var classes = []fault.Code{fault.Config, fault.BadSignature, fault.Auth, fault.IO, fault.Unavailable, fault.Failed}

// Verdict returns nil if no check failed, else an error with the most urgent exit code.
func Verdict(found []adminapi.Examination) error {
	ok := func(e adminapi.Examination) bool { return e.Status != adminapi.CheckFail }
	failed := slices.DeleteFunc(slices.Clone(found), ok)
	if len(failed) == 0 {
		return nil
	}
	code := fault.Failed
	for _, class := range slices.Backward(classes) {
		if slices.ContainsFunc(failed, func(e adminapi.Examination) bool { return e.ExitCode == int(class) }) {
			code = class
		}
	}
	row := fault.DoctorFailed
	row.Exit, row.Advice = code, failed[0].Advice
	return row.Of(fmt.Errorf("%d of %d checks failed, %s first", len(failed), len(found), failed[0].Check))
}

// service checks HSM and store. A running daemon has the store's lock and the token's login, so it checks them
// itself; without a daemon this process opens them.
func (d *doctor) service(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	if _, running := d.daemonPID(); running {
		d.ok("daemon", "answers on "+d.cfg.Admin.Socket)
		d.askDaemon(ctx)
		d.tlsIdentity(ctx)
		return
	}
	d.warns("daemon", fault.DoctorNoDaemon.With("socket", d.cfg.Admin.Socket))
	if _, refused := d.pinRefused(); refused {
		return // guard reported it
	}
	if !d.storeIsThere() {
		d.fails("store", fault.NoStore.With("path", d.cfg.Store.Path).Error())
		return
	}
	found, err := d.Open(ctx, d.cfg)
	if err != nil {
		d.fails("service", err)
	}
	d.found = append(d.found, found...)
}

// storeIsThere reports whether there is a file, or something that cannot be examined, at store.path.
func (d *doctor) storeIsThere() bool {
	_, err := os.Stat(d.cfg.Store.Path)
	return !errors.Is(err, fs.ErrNotExist)
}

func (d *doctor) askDaemon(ctx context.Context) {
	found, err := adminapi.Routes.Doctor.Call(ctx, adminapi.NewCaller(d.cfg.Admin.Socket), adminapi.None{})
	if err != nil {
		d.fails("service", fault.DoctorDaemonFails.Of(err))
	}
	d.found = append(d.found, found...)
}

// tlsIdentity connects to the listener as a device does, with the authorities of ca.pem.
func (d *doctor) tlsIdentity(ctx context.Context) {
	text, err := os.ReadFile(filepath.Join(d.cfg.StateDir, "ca.pem"))
	if err != nil {
		d.fails("certificate", fault.DoctorNoAuthorities.Of(err))
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
		d.fails("certificate", fault.DoctorNoAPI.Of(err))
		return
	}
	defer func() { _ = conn.Close() }() // nothing was sent
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	until := leaf.NotAfter.UTC().Format(time.RFC3339)
	if time.Until(leaf.NotAfter) < keyuse.ServerCertLife/4 {
		d.warns("certificate", fault.DoctorOldIdentity.With("time", until))
		return
	}
	d.ok("certificate", fmt.Sprintf("of %s, good until %s", d.cfg.API.Listen, until))
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
