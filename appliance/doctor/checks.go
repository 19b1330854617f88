package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"countersign/appliance/adminapi/server"
	"countersign/appliance/anchor"
	"countersign/hsm/pool"
	"countersign/internal/fault"
)

// file describes a file that the daemon relies on.
type file struct {
	check     string
	path      string
	forbidden fs.FileMode // permission bits that it must not have
	kind      fs.FileMode // type bits that it must have: 0 is a regular file
	optional  bool        // it may be missing
	exit      fault.Code  // if it is wrong
}

// files checks names, kinds and permissions. It opens only the anchor.
func (d *doctor) files() {
	d.file(file{check: "state_dir", path: d.cfg.StateDir, forbidden: 0o077, kind: fs.ModeDir, exit: fault.Config})
	if pin := d.cfg.HSM.Pin; pin.Source == "file" {
		d.file(file{check: "pin", path: pin.Path, forbidden: 0o077, exit: fault.Auth})
	} else {
		d.ok("pin", pin.String())
	}
	d.guard()
	d.anchor()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		d.file(file{check: "store file", path: d.cfg.Store.Path + suffix, forbidden: 0o077, optional: true, exit: fault.Config})
	}
	d.file(file{
		check: "admin socket", path: d.cfg.Admin.Socket, forbidden: 0o077, kind: fs.ModeSocket, optional: true, exit: fault.Config,
	})
	d.file(file{check: "module", path: d.cfg.HSM.Module, forbidden: 0o022, exit: fault.Unavailable})
	d.workerBinary()
}

func (d *doctor) file(f file) {
	info, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) && f.optional {
		return
	}
	switch {
	case err != nil:
		d.fails(f.check, f.wrong(fault.DoctorNoFile).Of(err))
	case info.Mode().Type() != f.kind:
		d.fails(f.check, f.wrong(fault.DoctorFileKind.With("path", f.path, "mode", info.Mode().String())).Error())
	case info.Mode().Perm()&f.forbidden != 0:
		allowed := info.Mode().Perm() &^ f.forbidden
		d.fails(f.check, f.wrong(fault.DoctorFileMode.With("path", f.path, "mode", octal(info.Mode().Perm()), "allowed", octal(allowed))).Error())
	default:
		d.ok(f.check, fmt.Sprintf("%s, mode %04o", f.path, info.Mode().Perm()))
	}
}

// wrong returns the row with the exit code of the file.
func (f file) wrong(row fault.Row) fault.Row {
	row.Exit = f.exit
	return row
}

func octal(mode fs.FileMode) string { return fmt.Sprintf("%04o", mode) }

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
	d.fails("pin guard", fault.DoctorPINGuard.With("since", since).Error())
}

// anchor checks the file with which the daemon compares the store.
func (d *doctor) anchor() {
	path := d.AnchorPath(d.cfg)
	a, err := anchor.Read(path)
	switch {
	case errors.Is(err, anchor.ErrNone) && !d.storeIsThere():
		d.ok("anchor", "none, and no store that it would vouch for")
	case errors.Is(err, anchor.ErrNone) && d.cfg.Trust.Root == "":
		d.fails("anchor", fmt.Errorf("%w; trust.root names no root either", err))
	case errors.Is(err, anchor.ErrNone):
		d.warns("anchor", fault.DoctorAnchorPinned)
	case err != nil:
		d.fails("anchor", err)
	default:
		d.ok("anchor", fmt.Sprintf("root %d, %s, revision %d, mac %d", a.Root, a.Key, a.Revision, a.MAC))
		d.file(file{check: "anchor file", path: path, forbidden: 0o077, exit: fault.Config})
	}
}

func (d *doctor) workerBinary() {
	path, err := d.WorkerBinary(d.cfg)
	if err != nil {
		d.fails("worker binary", err)
		return
	}
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 == 0 {
		d.fails("worker binary", fault.DoctorNotExecutable.With("path", path).Error())
		return
	}
	d.file(file{check: "worker binary", path: path, forbidden: 0o022, exit: fault.Config})
}

// host checks the machine: disk, clock and core files.
func (d *doctor) host() {
	d.disk()
	d.synchronized()
	d.coreLimit()
}

// littleFree is the free space, in bytes, below which the doctor warns.
const littleFree = 256 << 20

func (d *doctor) disk() {
	dir := filepath.Dir(d.cfg.Store.Path)
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		d.fails("disk", fault.DoctorNoDisk.With("dir", dir).Of(err))
		return
	}
	free := disk.Bavail * uint64(disk.Bsize)
	detail := fmt.Sprintf("%s: %d MiB free, %d files", dir, free>>20, disk.Ffree)
	noFiles := disk.Files > 0 && disk.Ffree == 0
	switch {
	case free < d.LeastFree || noFiles:
		d.fails("disk", fault.DoctorDiskFull.Of(errors.New(detail)))
	case free < littleFree:
		low := fault.DoctorDiskLow
		low.Text = detail
		d.warns("disk", low)
	default:
		d.ok("disk", detail)
	}
}

// staUnsync of adjtimex(2): the clock is not synchronized.
const staUnsync = 0x0040

// synchronized asks the kernel whether the clock is synchronized.
func (d *doctor) synchronized() {
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err != nil {
		d.warns("time service", fault.DoctorNoTimeService.With("cause", err.Error()))
		return
	}
	if tx.Status&staUnsync != 0 {
		d.warns("time service", fault.DoctorUnsynchronized)
		return
	}
	d.ok("time service", fmt.Sprintf("the clock is synchronized, within %v", time.Duration(tx.Maxerror)*time.Microsecond))
}

// coreLimit checks the running daemon, or else this process, which hardens itself in the same way.
func (d *doctor) coreLimit() {
	pid := os.Getpid()
	if running, ok := d.daemonPID(); ok {
		pid = running
	}
	soft, err := coreLimitOf(pid)
	switch {
	case err != nil:
		d.warns("core files", fault.DoctorCoreUnknown.With("cause", err.Error()))
	case soft != "0":
		d.fails("core files", fault.DoctorCoreFiles.With("pid", strconv.Itoa(pid), "bytes", soft).Error())
	default:
		d.ok("core files", fmt.Sprintf("process %d leaves none", pid))
	}
}

// daemonPID returns the process that listens on the admin socket.
func (d *doctor) daemonPID() (int, bool) {
	conn, err := net.DialTimeout("unix", d.cfg.Admin.Socket, time.Second)
	if err != nil {
		return 0, false
	}
	defer func() { _ = conn.Close() }() // nothing was sent
	peer, err := server.Peer(conn)
	if err != nil {
		return 0, false
	}
	return int(peer.Pid), true
}

// coreLimitOf returns the soft limit of core files in /proc/PID/limits, "0" or bytes.
func coreLimitOf(pid int) (string, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "limits"))
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // it was read only
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "Max core file size"); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				return fields[0], nil
			}
		}
	}
	return "", fmt.Errorf("/proc/%d/limits has no core file size", pid)
}
