package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"countersign/appliance/anchor"
	"countersign/hsm/pool"
	"countersign/internal/cli"
)

// file describes a file that the daemon relies on.
type file struct {
	check     string
	path      string
	forbidden fs.FileMode // permission bits that it must not have
	kind      fs.FileMode // type bits that it must have: 0 is a regular file
	optional  bool        // it may be missing
	code      cli.Code    // exit code if it is wrong
}

// files checks names, kinds and permissions. It opens only the anchor.
func (d *doctor) files() {
	d.file(file{check: "state_dir", path: d.cfg.StateDir, forbidden: 0o077, kind: fs.ModeDir, code: cli.Config})
	if pin := d.cfg.HSM.Pin; pin.Source == "file" {
		d.file(file{check: "pin", path: pin.Path, forbidden: 0o077, code: cli.Auth})
	} else {
		d.ok("pin", pin.String())
	}
	d.guard()
	d.anchor()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		d.file(file{check: "store file", path: d.cfg.Store.Path + suffix, forbidden: 0o077, optional: true, code: cli.Config})
	}
	d.file(file{
		check: "admin socket", path: d.cfg.Admin.Socket, forbidden: 0o077, kind: fs.ModeSocket, optional: true, code: cli.Config,
	})
	d.file(file{check: "module", path: d.cfg.HSM.Module, forbidden: 0o022, code: cli.Unavailable})
	d.workerBinary()
}

func (d *doctor) file(f file) {
	info, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) && f.optional {
		return
	}
	switch {
	case err != nil:
		d.refuses(f.check, err, f.code, "correct its path in the configuration, or create it")
	case info.Mode().Type() != f.kind:
		d.refuses(f.check, fmt.Errorf("%s is not the right kind of file: %s", f.path, info.Mode()), f.code, "correct its path in the configuration")
	case info.Mode().Perm()&f.forbidden != 0:
		allowed := info.Mode().Perm() &^ f.forbidden
		d.refuses(f.check, fmt.Errorf("%s has mode %04o", f.path, info.Mode().Perm()), f.code, fmt.Sprintf("chmod %04o %s", allowed, f.path))
	default:
		d.ok(f.check, fmt.Sprintf("%s, mode %04o", f.path, info.Mode().Perm()))
	}
}

// pinRefused reports whether the first token refused its PIN, and the time if it is known.
func (d *doctor) pinRefused() (when time.Time, refused bool) {
	return pool.GuardOf(d.cfg.StateDir, "first").Refused()
}

func (d *doctor) guard() {
	when, refused := d.pinRefused()
	if !refused {
		return
	}
	since := ""
	if !when.IsZero() {
		since = " since " + when.UTC().Format(time.RFC3339)
	}
	d.refuses("pin guard", fmt.Errorf("the token refused the PIN%s, and it is not tried again", since), cli.Auth,
		"countersignctl hsm unlock with the right PIN lifts the guard")
}

// anchor checks the file with which the daemon compares the store.
func (d *doctor) anchor() {
	path := d.AnchorPath(d.cfg)
	a, err := anchor.Read(path)
	switch {
	case errors.Is(err, anchor.ErrNone) && d.cfg.Trust.Root == "":
		d.fails("anchor", fmt.Errorf("%w; trust.root names no root either", err))
	case errors.Is(err, anchor.ErrNone):
		d.warns("anchor", err.Error(), "countersignd serve creates it from trust.root")
	case err != nil:
		d.fails("anchor", err)
	default:
		d.ok("anchor", fmt.Sprintf("root %d, %s, revision %d, mac %d", a.Root, a.Key, a.Revision, a.MAC))
		d.file(file{check: "anchor file", path: path, forbidden: 0o077, code: cli.Config})
	}
}

func (d *doctor) workerBinary() {
	path, err := d.WorkerBinary(d.cfg)
	if err != nil {
		d.fails("worker binary", err)
		return
	}
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 == 0 {
		d.refuses("worker binary", fmt.Errorf("%s is not executable", path), cli.Config, "chmod +x "+path)
		return
	}
	d.file(file{check: "worker binary", path: path, forbidden: 0o022, code: cli.Config})
}
