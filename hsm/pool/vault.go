package pool

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"countersign/hsm"
)

// vault keeps the PIN for workers that are started later, outside the memory of
// this process: in an anonymous file (memfd_create(2)) that has no name and goes
// with the process. Only root, or who may trace the process, can open it.
type vault struct {
	file *os.File
	size int // bytes of the PIN
}

// newVault takes the PIN over and erases it.
func newVault(pin hsm.PIN) (*vault, error) {
	defer pin.Zero()
	fd, err := unix.MemfdCreate("pin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making room for the PIN: %w", err)
	}
	v := &vault{os.NewFile(uintptr(fd), "pin"), len(pin)}
	if _, err := v.file.WriteAt(pin, 0); err != nil {
		_ = v.file.Close()
		return nil, fmt.Errorf("keeping the PIN: %w", err)
	}
	return v, nil
}

// read returns the PIN, for the caller to erase. A vault that was never made or
// is closed has none.
func (v *vault) read() (hsm.PIN, error) {
	if v == nil {
		return nil, os.ErrClosed
	}
	pin := make(hsm.PIN, v.size)
	if _, err := v.file.ReadAt(pin, 0); err != nil {
		pin.Zero()
		return nil, fmt.Errorf("reading the kept PIN: %w", err)
	}
	return pin, nil
}

// close erases the PIN.
func (v *vault) close() {
	if v == nil {
		return
	}
	_, _ = v.file.WriteAt(make([]byte, v.size), 0) // it goes with the file anyway
	_ = v.file.Close()
}
