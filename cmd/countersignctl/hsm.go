package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
)

// hsm is the noun of the token and its module.
func (t *tool) hsm() *cobra.Command {
	cmd := &cobra.Command{Use: "hsm", Short: "Look after the HSM: its state and its PIN, what it can do, how fast it is, how it is named"}
	cmd.AddCommand(
		t.hsmStatus(),
		t.hsmUnlock(),
		t.hsmDrain("drain", "Let a token finish what it does and give it no more, for its maintenance", adminapi.Routes.HSMDrain),
		t.hsmDrain("resume", "Give a drained token calls again", adminapi.Routes.HSMResume),
		hsmProbe("probe", "Try what a PKCS#11 module can do and what it costs"),
		hsmProbe("bench", "Compare the speed of the service with that of the token"),
		hsmProbe("uri [URI]", "Print the PKCS#11 URI of a token in its one canonical form"),
	)
	return cmd
}

// hsmProbe is a command of the program hsm-probe. This process becomes hsm-probe, which
// reads the flags, and the PIN if it needs one.
func hsmProbe(use, short string) *cobra.Command {
	become := func(cmd *cobra.Command, args []string) error {
		path, err := beside("hsm-probe")
		if err == nil {
			err = unix.Exec(path, append([]string{path, cmd.Name()}, args...), os.Environ())
		}
		return cli.Fail(cli.Unavailable, fmt.Errorf("starting hsm-probe: %w", err), "it belongs beside countersignctl")
	}
	cmd := &cobra.Command{Use: use, Short: short, DisableFlagParsing: true, RunE: become}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { _ = become(cmd, []string{"--help"}) })
	return cmd
}

// beside returns the path of a program in the directory of this one.
func beside(program string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", program, err)
	}
	return filepath.Join(filepath.Dir(self), program), nil
}
