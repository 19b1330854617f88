package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"countersign/hsm"
	"countersign/hsm/pool"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/fault"
)

// target is the token of a command, from a configuration file or from flags.
type target struct {
	configPath string
	hsm        config.HSM // of flags, then complete
	pinFD      int
	guard      pool.Guard // of the appliance with this configuration
}

// flags adds the flags that select a token.
func (g *target) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&g.configPath, "config", "config.toml", "configuration file of the appliance, when --module is not given")
	f.StringVar(&g.hsm.Module, "module", "", "PKCS#11 library, in place of a configuration file")
	f.StringVar(&g.hsm.TokenLabel, "token-label", "", "label of the token")
	f.StringVar(&g.hsm.TokenSerial, "token-serial", "", "serial number of the token")
	f.StringVar(&g.hsm.InitArgs, "init-args", "", "string for C_Initialize, which NSS needs")
	f.StringVar(&g.hsm.Pin.Path, "pin-file", "", "file with the user PIN, mode 0600; without any --pin flag you are asked")
	f.StringVar(&g.hsm.Pin.Name, "pin-credential", "", "systemd credential with the user PIN")
	f.IntVar(&g.pinFD, "pin-fd", -1, "inherited file descriptor with the user PIN")
	f.StringVar(&g.hsm.WorkerBinary, "worker-binary", "", "program that loads the library (default hsm-worker beside this one)")
}

// load completes the target: from flags alone with --module, otherwise from the
// configuration file, over which flags take precedence.
func (g *target) load() error {
	flags := g.hsm
	flags.Pin = g.pin()
	if flags.Module == "" {
		a, err := config.LoadAppliance(g.configPath)
		if err != nil {
			return err
		}
		g.hsm, g.guard = over(a.HSM, flags), guardFor(a, flags)
		if g.guard == "" && flags.Pin.Source == "" && another(a.HSM, flags) {
			g.hsm.Pin = config.Secret{Source: "prompt"}
		}
	} else {
		g.hsm = over(config.HSM{Pin: config.Secret{Source: "prompt"}}, flags)
	}
	if g.hsm.WorkerBinary != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding hsm-worker: %w", err)
	}
	g.hsm.WorkerBinary = filepath.Join(filepath.Dir(self), "hsm-worker")
	return nil
}

// another reports whether the flags select a token other than the configuration's, with
// another PIN.
func another(h, flags config.HSM) bool {
	return flags.TokenLabel != "" && flags.TokenLabel != h.TokenLabel || flags.TokenSerial != "" && flags.TokenSerial != h.TokenSerial
}

// guardFor returns the guard of the configuration's token. Another token has none, and
// neither has an appliance without a state directory.
func guardFor(a *config.Appliance, flags config.HSM) pool.Guard {
	if _, err := os.Stat(a.StateDir); err != nil || another(a.HSM, flags) {
		return ""
	}
	return pool.GuardOf(a.StateDir, "first")
}

// pin returns the source of the PIN in the flags; its Source is "" if there is none.
func (g *target) pin() config.Secret {
	s := g.hsm.Pin
	switch {
	case s.Path != "":
		s.Source = "file"
	case s.Name != "":
		s.Source = "credential"
	case g.pinFD >= 0:
		s.Source, s.FD = "fd", &g.pinFD
	}
	return s
}

func over(h, flags config.HSM) config.HSM {
	if flags.TokenLabel != "" || flags.TokenSerial != "" { // they select together
		h.TokenLabel, h.TokenSerial = flags.TokenLabel, flags.TokenSerial
	}
	for _, one := range []struct{ into, from *string }{
		{&h.Module, &flags.Module}, {&h.InitArgs, &flags.InitArgs}, {&h.WorkerBinary, &flags.WorkerBinary},
	} {
		if *one.from != "" {
			*one.into = *one.from
		}
	}
	if flags.Pin.Source != "" {
		h.Pin = flags.Pin
	}
	return h
}

// secret reads the PIN, once.
func (g *target) secret(cmd *cobra.Command) (hsm.PIN, error) {
	name := g.hsm.TokenLabel
	if name == "" {
		name = g.hsm.TokenSerial
	}
	if name == "" {
		return nil, fault.ProbeWhichToken.Error()
	}
	if when, refused := g.guard.Refused(); refused {
		return nil, fmt.Errorf("token %s: %w since %s", name, pool.ErrRefusedBefore, when.UTC().Format(time.RFC3339))
	}
	if g.hsm.Pin.Source == config.SourceUnlock {
		g.hsm.Pin.Source = "prompt"
	}
	pin, err := g.hsm.Pin.Resolve(config.SecretSources{
		What: "PIN of token " + name, CredentialsDir: os.Getenv("CREDENTIALS_DIRECTORY"), Prompt: cli.TerminalOf(cmd).Secret,
	})
	return pin, err
}

// do runs one job on the target and erases the PIN.
func (g *target) do(ctx context.Context, j job, into any) error {
	if _, err := os.Stat(g.hsm.WorkerBinary); err != nil { // the appliance could not start with it
		j.token.PIN.Zero()
		return fmt.Errorf("finding hsm-worker: %v: %w", err, hsm.ErrUnavailable)
	}
	j.stderr = os.Stderr
	j.token.Module, j.token.InitArgs = g.hsm.Module, g.hsm.InitArgs
	if j.name == slotsJob {
		return config.TokenError(g.hsm.Module, j.run(ctx, into))
	}
	j.token.TokenLabel, j.token.TokenSerial = g.hsm.TokenLabel, g.hsm.TokenSerial
	return config.TokenError(g.hsm.Module, g.guard.Try(func() error { return j.run(ctx, into) }))
}
