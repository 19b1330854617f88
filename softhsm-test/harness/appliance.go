package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Config says which appliance is started, and where.
type Config struct {
	Bin          Bin
	Dir          string   // of token, store and sockets; made if it is not there, used on if it is
	Module       string   // PKCS#11 module; "": SoftHSM
	SecondModule string   // PKCS#11 module of a second token; "": there is one
	Env          []string // NAME=VALUE, beside the caller's environment
	Cwd          string   // working directory, where core files would lie; "": the caller's
	Stderr       *os.File // of all programs, in place of Log; nil: none
}

// Info is DIR/dev.json.
type Info struct {
	URL     string `json:"url"`
	CA      string `json:"ca"`
	Link    string `json:"link"`
	Admin   string `json:"admin"`
	Ops     string `json:"ops"`
	Hooklog string `json:"hooklog"`
}

// Appliance is `countersignd dev`: appliance, token, store and a relay.
type Appliance struct {
	*Daemon
	Info
	Config Config
}

// Start starts an appliance and waits until all of it is ready. The caller calls
// Stop or Kill.
func Start(ctx context.Context, c Config) (*Appliance, error) {
	a := &Appliance{Config: c}
	return a, a.Restart(ctx)
}

// Restart starts an appliance that has ended once more, on the same directory. The
// ports, and with them the addresses of Info, are other ones.
func (a *Appliance) Restart(ctx context.Context) error {
	path := filepath.Join(a.Config.Dir, "dev.json")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	args := []string{"dev", "--dir", a.Config.Dir}
	if a.Config.Module != "" {
		args = append(args, "--module", a.Config.Module)
	}
	if a.Config.SecondModule != "" {
		args = append(args, "--second-module", a.Config.SecondModule)
	}
	var err error
	if a.Daemon, err = a.Config.Bin.Start(Call{Program: "countersignd", Args: args, Env: a.Config.Env, Dir: a.Config.Cwd, Stderr: a.Config.Stderr}); err != nil {
		return err
	}
	if a.Info, err = waitInfo(ctx, a.Daemon, path); err != nil {
		return errors.Join(err, a.Kill())
	}
	return nil
}

// waitInfo reads dev.json once it is there; the daemon's end before that is an
// error.
func waitInfo(ctx context.Context, d *Daemon, path string) (info Info, err error) {
	err = Until(ctx, path, func() (bool, error) {
		raw, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !d.Running():
			return false, fmt.Errorf("countersignd dev ended: %s", d.Log())
		case errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, err
		}
		return true, json.Unmarshal(raw, &info)
	})
	return info, err
}
