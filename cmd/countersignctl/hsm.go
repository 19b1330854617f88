package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"countersign/hsm"
	"countersign/internal/cli"
)

// hsm is the noun of the token and its module.
func (t *tool) hsm() *cobra.Command {
	cmd := &cobra.Command{Use: "hsm", Short: "Look after the HSM: its state and its PIN, what it can do, how fast it is, how it is named"}
	cmd.AddCommand(
		t.hsmStatus(),
		t.hsmUnlock(),
		t.hsmDrain("drain", "Let a token finish what it does and give it no more, for its maintenance"),
		t.hsmDrain("resume", "Give a drained token calls again"),
		t.hsmProbe(),
		t.hsmBench(),
		t.hsmURI(),
	)
	return cmd
}

// hsmExits is the one table from errors of the HSM to exit codes and advice.
var hsmExits = []struct {
	err  error
	code cli.Code
	hint string
}{
	{context.Canceled, cli.Failed, "it was interrupted; what it had made on the token is removed, or will be by the next run"},
	{context.DeadlineExceeded, cli.Unavailable, "the module hangs; the next run removes what this one made"},
	{hsm.ErrPIN, cli.Auth, "check the PIN: it was tried at most once and is not tried again, so that the token does not lock"},
	{hsm.ErrUnavailable, cli.Unavailable, "check --module, --token-label and --worker-binary or the configuration; countersignctl hsm uri pkcs11: tells which tokens are there"},
}

func explainHSM(err error) error {
	for _, row := range hsmExits {
		if errors.Is(err, row.err) {
			return cli.Fail(row.code, err, row.hint)
		}
	}
	return err
}
