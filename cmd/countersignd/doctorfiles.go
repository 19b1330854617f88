package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"countersign/appliance/anchor"
	"countersign/hsm/worker"
	"countersign/internal/cli"
)

// file is one that the daemon relies on, and who may do what with it.
type file struct {
	check     string
	path      string
	forbidden fs.FileMode // permission bits that it must not have
	kind      fs.FileMode // type bits that it must have: 0 is a regular file
	optional  bool        // it may be missing
	code      cli.Code    // of what is wrong with it
}

// files examines what lies on the disk, and opens nothing.
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
	d.file(file{check: "admin socket", path: d.cfg.Admin.Socket, forbidden: 0o077, kind: fs.ModeSocket, optional: true, code: cli.Config})
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
		d.refuses(f.check, err, f.code, "correct its path in the configuration, or put it there")
	case info.Mode().Type() != f.kind:
		d.refuses(f.check, fmt.Errorf("%s is another kind of file: %s", f.path, info.Mode()), f.code, "correct its path in the configuration")
	case info.Mode().Perm()&f.forbidden != 0:
		allowed := info.Mode().Perm() &^ f.forbidden
		d.refuses(f.check, fmt.Errorf("%s has mode %04o", f.path, info.Mode().Perm()), f.code, fmt.Sprintf("chmod %04o %s", allowed, f.path))
	default:
		d.ok(f.check, fmt.Sprintf("%s, mode %04o", f.path, info.Mode().Perm()))
	}
}

// pinRefused tells whether the guard of the first token is up.
func (d *doctor) pinRefused() (since string, up bool) {
	when, up := worker.GuardOf(d.cfg.StateDir, "first").Refused()
	if up && !when.IsZero() {
		since = " since " + when.UTC().Format(time.RFC3339)
	}
	return since, up
}

func (d *doctor) guard() {
	since, up := d.pinRefused()
	if !up {
		return
	}
	d.refuses("pin guard", fmt.Errorf("the token refused the PIN%s, and it is not tried again", since), cli.Auth,
		"countersignctl hsm unlock with the right PIN lifts the guard")
}

// anchor checks the file that the store is compared with.
func (d *doctor) anchor() {
	path := anchorPath(d.cfg)
	a, err := anchor.Read(path)
	switch {
	case errors.Is(err, anchor.ErrNone) && d.cfg.Trust.Root == "":
		d.fails("anchor", fmt.Errorf("%w; trust.root names no root either", err))
	case errors.Is(err, anchor.ErrNone):
		d.warns("anchor", err.Error(), "countersignd serve makes it from trust.root")
	case err != nil:
		d.fails("anchor", err)
	default:
		d.ok("anchor", fmt.Sprintf("root %d, %s, revision %d, mac %d", a.Root, a.Key, a.Revision, a.MAC))
		d.file(file{check: "anchor file", path: path, forbidden: 0o077, code: cli.Config})
	}
}

func (d *doctor) workerBinary() {
	path, err := siblingOr(d.cfg.HSM.WorkerBinary, "hsm-worker")
	if err != nil {
		d.fails("worker binary", err)
		return
	}
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 == 0 {
		d.refuses("worker binary", fmt.Errorf("%s cannot be run", path), cli.Config, "chmod +x "+path)
		return
	}
	d.file(file{check: "worker binary", path: path, forbidden: 0o022, code: cli.Config})
}
