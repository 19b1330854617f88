// Package shim controls the PKCS#11 module bin/faultshim.so, which forwards to a real
// module and injects faults, and reads its counts. It builds nothing;
// softhsm-test/faultshim/faultshim.h describes the control file.
package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Library is the module's name in the directory of the programs.
const Library = "faultshim.so"

// Shim controls all processes that were started with its [Shim.Env].
type Shim struct {
	Module string // path, to be given in place of the vendor's
	dir    string
	writes *atomic.Uint64
}

// New returns the module in bin, controlled by files in the existing directory dir.
func New(bin, dir string) (Shim, error) {
	s := Shim{Module: filepath.Join(bin, Library), dir: dir, writes: new(atomic.Uint64)}
	if _, err := os.Stat(s.Module); err != nil {
		return Shim{}, fmt.Errorf("looking for the fault shim: %w", err)
	}
	return s, nil
}

func (s Shim) control() string { return filepath.Join(s.dir, "faultshim.ctl") }
func (s Shim) counts() string  { return filepath.Join(s.dir, "faultshim.counts") }
func (s Shim) log() string     { return filepath.Join(s.dir, "faultshim.log") }

// Env returns what the environment of the processes needs besides SOFTHSM2_CONF.
func (s Shim) Env() []string {
	return []string{"FAULTSHIM_FILE=" + s.control(), "FAULTSHIM_COUNTS=" + s.counts(), "FAULTSHIM_LOG=" + s.log()}
}

// Rules are lines of a control file.
type Rules []string

func (r Rules) String() string { return strings.Join(r, "\n") + "\n" }

// Set replaces the rules by rename: no process sees half of them. They apply to every call
// that begins afterwards.
func (s Shim) Set(rules ...string) error {
	text := fmt.Sprintf("# writing %d at %d\n%s", s.writes.Add(1), time.Now().UnixNano(), Rules(rules)) // no two are the same
	fresh := s.control() + ".new"
	if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
		return fmt.Errorf("setting faults: %w", err)
	}
	if err := os.Rename(fresh, s.control()); err != nil {
		return fmt.Errorf("setting faults: %w", err)
	}
	return nil
}

// Clear ends all faults.
func (s Shim) Clear() error {
	if err := os.Remove(s.control()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clearing faults: %w", err)
	}
	return nil
}

// Counts returns the counts of all processes so far: see [ReadCounts].
func (s Shim) Counts() (Counts, error) { return ReadCounts(s.counts()) }
