package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm/uri"
	"countersign/internal/cli"
)

// named is a token's URI, and what of it fits nothing that is there.
type named struct {
	URI    string   `json:"uri"`
	Unfit  []string `json:"unfit"`
	Tokens []string `json:"tokens"` // URIs of what the module shows

	open bool // the URI selects no token by itself
}

// showPatience bounds the loading of a module.
const showPatience = 15 * time.Second

func (t *tool) uri() *cobra.Command {
	var g target
	cmd := &cobra.Command{
		Use: "uri [URI]", Args: cobra.MaximumNArgs(1), Short: "Print the PKCS#11 URI of a token in its one canonical form",
		Long: `Print the canonical RFC 7512 URI of the token that the configuration names, or of
the one that is given, and what of it fits no token that the module shows. "pkcs11:"
fits every token. Exit code 5 says that no token fits.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := g.named(args)
			if err != nil {
				return err
			}
			n := named{URI: u.String(), Unfit: []string{}, Tokens: []string{}, open: len(u.Path()) == 0}
			if g.hsm.Module != "" {
				if err := g.compare(cmd.Context(), u, &n); err != nil {
					return err
				}
			}
			if err := printNamed(t.printer(cmd), n); err != nil {
				return err
			}
			if len(n.Unfit) > 0 {
				return cli.Fail(cli.NotFound, errors.New(strings.Join(n.Unfit, "\n")), "countersignctl hsm uri pkcs11: tells which tokens are there")
			}
			return nil
		},
	}
	g.flags(cmd)
	return cmd
}

// named is the URI of the argument, or of the configuration. A module that the URI
// names goes before that of the configuration, which need not be there.
func (g *target) named(args []string) (uri.URI, error) {
	if len(args) == 0 {
		if err := g.load(); err != nil {
			return uri.URI{}, err
		}
		return uri.New(uri.Attribute{Name: uri.Token, Value: g.hsm.TokenLabel},
			uri.Attribute{Name: uri.Serial, Value: g.hsm.TokenSerial}, uri.Attribute{Name: uri.ModulePath, Value: g.hsm.Module})
	}
	u, err := uri.Parse(args[0])
	if err != nil {
		return u, cli.Fail(cli.Usage, err, "for example pkcs11:token=countersign?module-path=/usr/lib/softhsm/libsofthsm2.so")
	}
	if path, ok := u.Get(uri.ModulePath); ok && g.hsm.Module == "" {
		g.hsm.Module = path
	}
	if err := g.load(); err != nil {
		g.hsm.Module = "" // then there is nothing to compare with
	}
	return u, nil
}

// compare looks at what the module shows. No PIN is needed for that.
func (g *target) compare(ctx context.Context, u uri.URI, n *named) error {
	ctx, cancel := context.WithTimeout(ctx, showPatience)
	defer cancel()
	var m report.Module
	if err := g.do(ctx, job{name: slotsJob}, &m); err != nil {
		return explain(err)
	}
	var slots []uri.Facts
	for _, token := range m.Tokens {
		slots = append(slots, facts(m.Library, token))
		one, err := uri.New(uri.Attribute{Name: uri.Token, Value: token.Label}, uri.Attribute{Name: uri.Manufacturer, Value: token.Manufacturer},
			uri.Attribute{Name: uri.Serial, Value: token.Serial}, uri.Attribute{Name: uri.Model, Value: token.Model})
		if err == nil { // a label that is not UTF-8 has no URI
			n.Tokens = append(n.Tokens, one.String())
		}
	}
	n.Unfit = append(n.Unfit, u.Unfit(slots)...)
	return nil
}

// facts are the path attributes of RFC 7512 §2.3 for a slot.
func facts(l report.Library, t report.Token) uri.Facts {
	return uri.Facts{
		uri.Token: t.Label, uri.Manufacturer: t.Manufacturer, uri.Serial: t.Serial, uri.Model: t.Model,
		uri.LibraryManufacturer: l.Manufacturer, uri.LibraryVersion: l.Version, uri.LibraryDescription: l.Description,
		uri.SlotDescription: t.SlotDescription, uri.SlotManufacturer: t.SlotMaker, uri.SlotID: strconv.FormatUint(uint64(t.Slot), 10),
	}
}

var uriTable = cli.Table[string]{{Title: "Token", Value: func(s string) string { return s }}}

// printNamed prints the URI alone on a line, so that a script can take it, and with
// no token of its own what is there.
func printNamed(p cli.Printer, n named) error {
	table := cli.Table[named]{{Title: "URI", Value: func(n named) string { return n.URI }}}
	if p.Format != cli.FormatTable {
		return table.One(p, n)
	}
	parts := []func() error{func() error { return printLine(p, n.URI) }}
	if n.open || len(n.Unfit) > 0 {
		parts = append(parts, func() error { return uriTable.List(p, n.Tokens) })
	}
	return inParts(p, parts)
}
