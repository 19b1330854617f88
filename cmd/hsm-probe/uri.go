package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm/uri"
	"countersign/internal/cli"
	"countersign/internal/fault"
)

// named is the URI of a token, with the attributes that no token has.
type named struct {
	URI    string   `json:"uri"`
	Unfit  []string `json:"unfit"`
	Tokens []string `json:"tokens"` // URIs of the tokens of the module

	open bool // the URI selects no token
}

// showLimit bounds the loading of a module.
const showLimit = 15 * time.Second

func (t *tool) uri() *cobra.Command {
	var g target
	cmd := &cobra.Command{
		Use: "uri [URI]", Args: cobra.MaximumNArgs(1), Short: "Print the PKCS#11 URI of a token in its one canonical form",
		Long: `Print the canonical RFC 7512 URI of the token in the configuration, or of the given
URI, and which of its attributes no token of the module has. "pkcs11:" fits every
token. Exit code 5: no token fits.`,
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
				return fault.NoTokenFits.With("reasons", strings.Join(n.Unfit, "\n")).Error()
			}
			return nil
		},
	}
	g.flags(cmd)
	return cmd
}

// named returns the URI of the argument, or of the configuration. A module in the URI
// takes precedence over the configuration, which need not exist.
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
		return u, fault.BadURI.Of(err)
	}
	if path, ok := u.Get(uri.ModulePath); ok && g.hsm.Module == "" {
		g.hsm.Module = path
	}
	if err := g.load(); err != nil {
		g.hsm.Module = "" // there is nothing to compare with
	}
	return u, nil
}

// compare looks at the tokens of the module. It needs no PIN.
func (g *target) compare(ctx context.Context, u uri.URI, n *named) error {
	ctx, cancel := context.WithTimeout(ctx, showLimit)
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

// facts returns the path attributes of RFC 7512 §2.3 for a slot.
func facts(l report.Library, t report.Token) uri.Facts {
	return uri.Facts{
		uri.Token: t.Label, uri.Manufacturer: t.Manufacturer, uri.Serial: t.Serial, uri.Model: t.Model,
		uri.LibraryManufacturer: l.Manufacturer, uri.LibraryVersion: l.Version, uri.LibraryDescription: l.Description,
		uri.SlotDescription: t.SlotDescription, uri.SlotManufacturer: t.SlotMaker, uri.SlotID: strconv.FormatUint(uint64(t.Slot), 10),
	}
}

var uriTable = cli.Table[string]{{Title: "Token", Value: func(s string) string { return s }}}

// printNamed prints the URI alone on a line, for scripts, and the tokens of the module if
// the URI selects none.
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
