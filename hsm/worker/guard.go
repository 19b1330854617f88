package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"countersign/hsm"

	"countersign/internal/durable"
)

// ErrRefusedBefore: the token refused a PIN before, and nobody has lifted the
// guard since, so it was not asked again. It wraps [hsm.ErrPIN].
var ErrRefusedBefore = fmt.Errorf("%w before, and it was not tried again", hsm.ErrPIN)

// ErrGuard: the guard cannot be read or written, so no PIN is tried. It wraps
// [hsm.ErrUnavailable].
var ErrGuard = fmt.Errorf("the PIN guard cannot be kept: %w", hsm.ErrUnavailable)

// GuardFile is the name of a guard in the state directory of an appliance.
const GuardFile = "pin-refused"

// Guard is the file that says that the token refused a PIN. While it is there
// no PIN is tried, by whatever process: a token locks after a few tries, and a
// restart loop makes them in a second. "" guards nothing.
type Guard string

// GuardOf is the guard of a token in the state directory of an appliance: pin-refused
// of the "first", pin-refused.NAME of another.
func GuardOf(stateDir, token string) Guard {
	name := GuardFile
	if token != "first" {
		name += "." + token
	}
	return Guard(filepath.Join(stateDir, name))
}

// Refused tells when the PIN was refused; false when it was not.
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
	return when, true // a guard that cannot be seen may be up
}

// Lift lets the next PIN be tried, once. Nothing to lift is no error.
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

// Try lets do try a PIN, once. A guard that is up is [ErrRefusedBefore]; it goes up
// when do says that the PIN was refused, [hsm.ErrPIN], before anybody learns of it.
// Where it could not be put up the PIN is not tried.
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

// arm prepares for a refusal, so that putting the guard up takes no room on the
// disk. A guard that is up is [ErrRefusedBefore]. One that could not be put up
// is an error: without it the PIN is not tried.
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

// raise makes the refusal last.
func (g Guard) raise() error {
	if g == "" {
		return nil
	}
	now := time.Now()
	_ = os.Chtimes(g.armed(), now, now) // it is the time that Refused tells
	err := durable.Rename(g.armed(), string(g))
	if errors.Is(err, fs.ErrNotExist) { // it was not armed, or another process disarmed it
		err = errors.Join(g.write(string(g)), durable.SyncDir(filepath.Dir(string(g))))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGuard, err)
	}
	return nil
}

// disarm is for a PIN that was not refused.
func (g Guard) disarm() {
	if g != "" {
		_ = os.Remove(g.armed()) // what stays is overwritten by the next arm
	}
}
