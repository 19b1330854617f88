package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
)

func (a *app) receiptsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "receipts", Short: "List what became of each authorization, the oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.open(cmd.Context(), client.Config{ReadOnly: true})
			if err != nil {
				return err
			}
			list, err := c.Receipts()
			if err != nil {
				return explain(err)
			}
			var rows []outcome
			for _, r := range list {
				rows = append(rows, outcomeOf(c, r))
			}
			return outcomeTable.List(a.printer(cmd), rows)
		},
	}
	cmd.AddCommand(a.verifyCommand())
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [SERIAL]",
		Short: "Verify the full receipts that are kept, offline",
		Long: "verify checks again that the decision in a full receipt is signed by a key of the pinned root, and that it is on\n" +
			"what was countersigned here. Without a serial it does so for all of them.\n\n" +
			"Exit codes: 0 all verify, 4 one does not, 5 there is no full receipt.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verify(cmd, args) },
	}
}

func (a *app) verify(cmd *cobra.Command, args []string) error {
	c, err := a.open(cmd.Context(), client.Config{ReadOnly: true})
	if err != nil {
		return err
	}
	list, err := c.Receipts()
	if len(args) != 0 {
		list = make([]client.Receipt, 1)
		list[0], err = receiptOf(c, args)
	}
	if err != nil {
		return explain(err)
	}
	rows, bad := []outcome{}, error(nil)
	for _, r := range list {
		if r.Decision == nil && len(args) == 0 {
			continue
		}
		r, err := c.VerifyReceipt(r.Serial)
		if err != nil && !errors.Is(err, client.ErrReceipt) {
			return explain(err)
		}
		r.Verified = err == nil
		rows, bad = append(rows, outcomeOf(c, r)), errors.Join(bad, err)
	}
	if len(rows) == 0 {
		return cli.Fail(cli.NotFound, fmt.Errorf("no full receipt is kept"), "authorize --receipt asks for one")
	}
	if err := outcomeTable.List(a.printer(cmd), rows); err != nil {
		return errors.Join(err, explain(bad))
	}
	return explain(bad)
}
