package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"countersign/hsm"
	"countersign/internal/durable"
)

// ErrRefusedBefore: the token refused a PIN before and the guard was not lifted since,
// so no PIN was tried. It wraps [hsm.ErrPIN].
var ErrRefusedBefore = fmt.Errorf("%w before, and it was not tried again", hsm.ErrPIN)

// ErrGuard: the guard cannot be read or written, so no PIN is tried. It wraps
// [hsm.ErrUnavailable].
var ErrGuard = fmt.Errorf("the PIN guard cannot be kept: %w", hsm.ErrUnavailable)

// GuardFile is the name of a guard in the state directory of an appliance.
const GuardFile = "pin-refused"

// Guard is a file that exists while the token has refused a PIN. No process tries a PIN
// then: a token locks after a few tries, and a restart loop makes them in a second.
// "" guards nothing.
type Guard string

// GuardOf returns the guard of a token in the state directory of an appliance: pin-refused
// for the token "first", pin-refused.NAME for another.
func GuardOf(stateDir, token string) Guard {
	name := GuardFile
	if token != "first" {
		name += "." + token
	}
	return Guard(filepath.Join(stateDir, name))
}

// Refused reports whether the PIN was refused, and when.
func (g Guard) Refused() (when time.Time, refused bool) {
	if g == "" {
		return when, false
	}
	info, err := os.Lstat(string(g))
	if errors.Is(err, fs.ErrNotExist) {
		return when, false
	}
	if err == nil {
		when = info.ModTime()
	}
	return when, true // a guard that cannot be read may be up
}

// Lift allows the next PIN to be tried, once. A guard that is not up is no error.
func (g Guard) Lift() error {
	if g == "" {
		return nil
	}
	err := os.Remove(string(g))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = durable.SyncDir(filepath.Dir(string(g)))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGuard, err)
	}
	return nil
}

// Try calls do, which tries a PIN, once. It returns [ErrRefusedBefore] if the guard is up.
// It puts the guard up when do returns [hsm.ErrPIN], before the caller learns of it. If
// the guard could not be put up, the PIN is not tried.
func (g Guard) Try(do func() error) error {
	if err := g.arm(); err != nil {
		return err
	}
	err := do()
	if !errors.Is(err, hsm.ErrPIN) {
		g.disarm()
		return err
	}
	return errors.Join(err, g.raise())
}

func (g Guard) armed() string { return string(g) + ".armed" }

// arm writes the file under another name, so that putting the guard up takes no room on
// the disk.
func (g Guard) arm() error {
	if g == "" {
		return nil
	}
	if when, refused := g.Refused(); refused {
		return fmt.Errorf("%w (%s says so since %s)", ErrRefusedBefore, g, when.UTC().Format(time.RFC3339))
	}
	if err := g.write(g.armed()); err != nil {
		return fmt.Errorf("%w: %w", ErrGuard, err)
	}
	return nil
}

func (g Guard) write(path string) error {
	const text = "The token refused the PIN. It is not tried again until `countersignctl hsm unlock`.\n"
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	return err
}

// raise puts the guard up durably.
func (g Guard) raise() error {
	if g == "" {
		return nil
	}
	now := time.Now()
	_ = os.Chtimes(g.armed(), now, now) // Refused returns this time
	err := durable.Rename(g.armed(), string(g))
	if errors.Is(err, fs.ErrNotExist) { // it was not armed, or another process disarmed it
		err = errors.Join(g.write(string(g)), durable.SyncDir(filepath.Dir(string(g))))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGuard, err)
	}
	return nil
}

// disarm is called when the PIN was not refused.
func (g Guard) disarm() {
	if g != "" {
		_ = os.Remove(g.armed()) // a file that stays is overwritten by the next arm
	}
}

// pinFile keeps the PIN for later starts outside the memory of this process: in an
// anonymous file (memfd_create(2)) that ends with the process. Only root, and a process
// that may trace this one, can open it.
type pinFile struct {
	file *os.File
	size int // bytes of the PIN
}

// newPINFile erases the PIN.
func newPINFile(pin hsm.PIN) (*pinFile, error) {
	defer pin.Zero()
	fd, err := unix.MemfdCreate("pin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating a file for the PIN: %w", err)
	}
	f := &pinFile{os.NewFile(uintptr(fd), "pin"), len(pin)}
	if _, err := f.file.WriteAt(pin, 0); err != nil {
		_ = f.file.Close()
		return nil, fmt.Errorf("keeping the PIN: %w", err)
	}
	return f, nil
}

// read returns the PIN, which the caller erases. A nil pinFile has none.
func (f *pinFile) read() (hsm.PIN, error) {
	if f == nil {
		return nil, os.ErrClosed
	}
	pin := make(hsm.PIN, f.size)
	if _, err := f.file.ReadAt(pin, 0); err != nil {
		pin.Zero()
		return nil, fmt.Errorf("reading the kept PIN: %w", err)
	}
	return pin, nil
}

// close erases the PIN.
func (f *pinFile) close() {
	if f == nil {
		return
	}
	_, _ = f.file.WriteAt(make([]byte, f.size), 0) // the kernel frees the memory anyway
	_ = f.file.Close()
}
