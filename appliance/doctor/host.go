package doctor

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"countersign/appliance/adminapi/server"
	"countersign/internal/cli"
)

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
		d.refuses("disk", fmt.Errorf("%s: %w", dir, err), cli.IO, "store.path must be on a mounted disk")
		return
	}
	free := disk.Bavail * uint64(disk.Bsize)
	detail := fmt.Sprintf("%s: %d MiB free, %d files", dir, free>>20, disk.Ffree)
	noFiles := disk.Files > 0 && disk.Ffree == 0
	switch {
	case free < d.LeastFree || noFiles:
		d.refuses("disk", fmt.Errorf("%s", detail), cli.IO, "free some space: without it the appliance approves nothing")
	case free < littleFree:
		d.warns("disk", detail, "free some space before the appliance can approve nothing")
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
		d.warns("time service", "adjtimex: "+err.Error(), "make sure that NTP synchronizes the clock")
		return
	}
	if tx.Status&staUnsync != 0 {
		d.warns("time service", "the clock is not synchronized", "run an NTP client: with a wrong clock, challenges expire early or late")
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
		d.warns("core files", err.Error(), "make sure that the daemon leaves no core files")
	case soft != "0":
		err = fmt.Errorf("process %d may leave core files of %s bytes, with the PIN in them", pid, soft)
		d.refuses("core files", err, cli.Failed, "restart the daemon; set LimitCORE=0")
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
