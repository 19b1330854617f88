package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/hsm/sheet"
	"countersign/hsm/wire"
	"countersign/hsm/worker/errand"
	"countersign/internal/cli"
)

// When a probe of 30 s, and one of 5 s, is taken for hung: one call of the module may
// go over.
const (
	patience      = time.Minute
	quickPatience = 20 * time.Second
)

func (t *tool) hsmProbe() *cobra.Command {
	var g target
	var order sheet.Order
	cmd := &cobra.Command{
		Use: "probe", Args: cobra.NoArgs, Short: "Try what a PKCS#11 module can do and what it costs",
		Long: `Try every mechanism that the appliance uses, on objects that are destroyed again,
and measure what calls cost, how many sessions are worth having, and what follows
for the configuration. Nothing stays on the token, but its free sessions, up to
1,024, are taken for a moment: run it beside a service only with --quick, which
takes 128. Exit code 1 says that the appliance could not run on it, and names what
is missing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.load(); err != nil {
				return err
			}
			pin, err := g.secret(cmd)
			if err != nil {
				return err
			}
			s, err := g.probe(cmd.Context(), pin, order)
			if err != nil {
				return explainHSM(err)
			}
			if err := printSheet(t.printer(cmd), s); err != nil {
				return err
			}
			return unable(s)
		},
	}
	g.flags(cmd)
	cmd.Flags().BoolVar(&order.Quick, "quick", false, "take at most 5 s in place of 30 s")
	cmd.Flags().BoolVar(&order.WrongPIN, "wrong-pin", false, "try a wrong PIN once after the login; the token may count it")
	return cmd
}

func (g *target) probe(ctx context.Context, pin wire.PIN, order sheet.Order) (s sheet.Sheet, err error) {
	limit := patience
	if order.Quick {
		limit = quickPatience
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = g.errand(ctx, errand.Errand{Job: sheet.Probe, Token: wire.Config{PIN: pin}, Order: order}, &s)
	return s, err
}

// unable says why the appliance could not run on a token; nil when it could.
func unable(s sheet.Sheet) error {
	if len(s.Missing) == 0 {
		return nil
	}
	return cli.Fail(cli.Failed, fmt.Errorf("the appliance cannot run on this token: it lacks %s", strings.Join(s.Missing, "; ")),
		"ask the vendor for the mechanism, or whether it is switched off by the token's policy")
}
