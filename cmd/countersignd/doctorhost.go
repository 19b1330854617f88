package main

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

	"countersign/internal/cli"
)

// host examines the machine: disk, clock and core files.
func (d *doctor) host() {
	d.disk()
	d.synchronized()
	d.coreLimit()
}

// littleFree is the room below which the doctor warns; with less than leastFree the
// daemon is not ready.
const littleFree = 256 << 20

func (d *doctor) disk() {
	dir := filepath.Dir(d.cfg.Store.Path)
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		d.refuses("disk", fmt.Errorf("%s: %w", dir, err), cli.IO, "store.path has to be on a disk that is there")
		return
	}
	free := disk.Bavail * uint64(disk.Bsize)
	detail := fmt.Sprintf("%s: %d MiB free, %d files", dir, free>>20, disk.Ffree)
	noFiles := disk.Files > 0 && disk.Ffree == 0
	switch {
	case free < leastFree || noFiles:
		d.refuses("disk", fmt.Errorf("%s", detail), cli.IO, "make room: nothing is approved without it")
	case free < littleFree:
		d.warns("disk", detail, "make room before nothing is approved any more")
	default:
		d.ok("disk", detail)
	}
}

// staUnsync of adjtimex(2): nobody keeps the clock.
const staUnsync = 0x0040

// synchronized asks the kernel whether anybody keeps the clock.
func (d *doctor) synchronized() {
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err != nil {
		d.warns("time service", "the kernel does not say: "+err.Error(), "see that NTP keeps the clock")
		return
	}
	if tx.Status&staUnsync != 0 {
		d.warns("time service", "nobody keeps the clock", "run an NTP client; a clock that is off lets challenges expire early or late")
		return
	}
	d.ok("time service", fmt.Sprintf("the clock is kept, within %v", time.Duration(tx.Maxerror)*time.Microsecond))
}

// coreLimit looks at the daemon that runs, or at this process, which hardens itself in
// the same way.
func (d *doctor) coreLimit() {
	pid := os.Getpid()
	if running, ok := d.daemonPID(); ok {
		pid = running
	}
	soft, err := coreLimitOf(pid)
	switch {
	case err != nil:
		d.warns("core files", err.Error(), "see that the daemon leaves no core files")
	case soft != "0":
		d.refuses("core files", fmt.Errorf("process %d may leave core files of %s bytes, with the PIN in them", pid, soft), cli.Failed, "restart the daemon; set LimitCORE=0")
	default:
		d.ok("core files", fmt.Sprintf("process %d leaves none", pid))
	}
}

// daemonPID is whoever listens on the admin socket, by the credentials that the kernel
// keeps (SO_PEERCRED).
func (d *doctor) daemonPID() (int, bool) {
	conn, err := net.DialTimeout("unix", d.cfg.Admin.Socket, time.Second)
	if err != nil {
		return 0, false
	}
	defer func() { _ = conn.Close() }() // nothing was sent
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, false
	}
	var credentials *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		credentials, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || controlErr != nil {
		return 0, false
	}
	return int(credentials.Pid), true
}

// coreLimitOf is the soft limit of core files in /proc/PID/limits, "0" or bytes.
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
