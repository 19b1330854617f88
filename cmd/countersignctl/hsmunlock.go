package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/hsm/pool"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/internal/secret"
)

// unlocking holds the flags of hsm unlock.
type unlocking struct {
	token, file, stateDir string
	fd                    int
}

func (t *tool) hsmUnlock() *cobra.Command {
	var u unlocking
	cmd := &cobra.Command{
		Use: "unlock", Args: cobra.NoArgs, Short: "Give the PIN to a daemon that waits for it, or allow a refused PIN to be tried again",
		Long: "Give the PIN to a daemon that was started without one, or whose PIN the token refused. It is tried once.\n" +
			"When no daemon runs, lift the guard that a refused PIN left in its state directory: the next start tries hsm.pin once.",
		RunE: func(cmd *cobra.Command, _ []string) error { return t.unlock(cmd, u) },
	}
	cmd.Flags().StringVar(&u.token, "token", "", "name of the token, when there are several")
	cmd.Flags().StringVar(&u.file, "pin-file", "", "file of mode 0600 with the PIN, instead of a prompt")
	cmd.Flags().IntVar(&u.fd, "pin-fd", -1, "file descriptor with the PIN, instead of a prompt")
	cmd.Flags().StringVar(&u.stateDir, "state-dir", "", "state_dir of a daemon that does not run (default the directory of --admin)")
	return cmd
}

func (t *tool) unlock(cmd *cobra.Command, u unlocking) error {
	tokens, err := send(t, cmd, adminapi.Routes.HSMStatus, adminapi.None{})
	if noDaemon(err) {
		return t.liftGuard(cmd, u)
	}
	if err != nil {
		return err
	}
	if !anyNeedsPIN(tokens, u.token) {
		if t.guardIsUp(u) { // by another program than the daemon, whose PIN is good
			return t.liftGuard(cmd, u)
		}
		return fault.NoTokenWaits.Error()
	}
	pin, err := u.readPIN(cmd)
	if err != nil {
		return err
	}
	defer pin.Zero()
	tokens, err = send(t, cmd, adminapi.Routes.HSMUnlock.With("token", u.token), []byte(pin))
	if err != nil {
		return err
	}
	return t.printTokens(cmd, tokens)
}

func anyNeedsPIN(tokens []adminapi.Token, name string) bool {
	for _, token := range tokens {
		if (name == "" || name == token.Name) && token.NeedsPIN {
			return true
		}
	}
	return false
}

// noDaemon reports whether the error is that no daemon listens on the socket.
func noDaemon(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

func (u unlocking) readPIN(cmd *cobra.Command) (secret.Bytes, error) {
	secret := config.Secret{Source: "prompt"}
	switch {
	case u.file != "":
		secret = config.Secret{Source: "file", Path: u.file}
	case u.fd >= 0:
		secret = config.Secret{Source: "fd", FD: &u.fd}
	}
	return secret.Resolve(config.SecretSources{What: "PIN of the token", Prompt: cli.TerminalOf(cmd).Secret})
}

// stateDir returns the directory of the guards, "" if it is not known.
func (t *tool) stateDir(u unlocking) string {
	if u.stateDir != "" {
		return u.stateDir
	}
	address, err := config.ParseAddress(t.address)
	if err != nil || address.Network() != "unix" {
		return ""
	}
	return filepath.Dir(address.Target())
}

// guards returns the guard of the named token, or the guards of all tokens.
func (t *tool) guards(u unlocking) []pool.Guard {
	names := []string{"first", "second"}
	if u.token != "" {
		names = []string{u.token}
	}
	var all []pool.Guard
	for _, name := range names {
		all = append(all, pool.GuardOf(t.stateDir(u), name))
	}
	return all
}

func (t *tool) guardIsUp(u unlocking) bool {
	return t.stateDir(u) != "" && slices.ContainsFunc(t.guards(u), func(g pool.Guard) bool {
		_, up := g.Refused()
		return up
	})
}

// liftGuard allows the next start of a daemon to try its PIN.
func (t *tool) liftGuard(cmd *cobra.Command, u unlocking) error {
	if t.stateDir(u) == "" {
		return fault.NoStateDir.Error()
	}
	if !t.guardIsUp(u) {
		return fault.NoPINRefused.With("address", t.address, "dir", t.stateDir(u)).Error()
	}
	for _, guard := range t.guards(u) {
		if err := lift(cmd, guard); err != nil {
			return err
		}
	}
	return nil
}

func lift(cmd *cobra.Command, guard pool.Guard) error {
	when, up := guard.Refused()
	if !up {
		return nil
	}
	if err := guard.Lift(); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return fault.GuardForbidden.Of(err)
		}
		return fault.GuardStuck.Of(err)
	}
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), "%s of %s is lifted: the next start of countersignd tries the configured PIN once. A wrong one counts on the token.\n",
		filepath.Base(string(guard)), when.UTC().Format(time.RFC3339))
	return err
}
