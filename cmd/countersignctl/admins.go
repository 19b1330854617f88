package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/internal/cli"
	"countersign/policy"
	"countersign/protocol"
)

var adminTable = cli.Table[admin.Administrator]{
	{Title: "Name", Value: func(a admin.Administrator) string { return a.Name }},
	{Title: "Signer", Value: func(a admin.Administrator) string { return a.Signer }},
	{Title: "Status", Value: func(a admin.Administrator) string { return a.Status }},
	{Title: "Public key", Value: func(a admin.Administrator) string { return a.PublicKey }},
	{Title: "Added", Value: func(a admin.Administrator) string { return date(a.CreatedAt) }},
}

func adminPath(args []string) string { return "admin/" + url.PathEscape(args[0]) }

func (t *tool) admin() *cobra.Command {
	cmd := &cobra.Command{Use: "admin", Short: "Manage the administrators who countersign changes"}
	cmd.AddCommand(
		t.addAdmin(), t.listAdmins(), t.keygen(),
		&cobra.Command{Use: "show NAME", Args: cobra.ExactArgs(1), Short: "Show one", RunE: show(t, adminTable, adminPath)},
		t.suspendAdmin(),
		t.adminStep("resume", "Take countersignatures of it again after suspend", false),
		t.adminStep("revoke", "Take no countersignature of it for ever", true),
	)
	return cmd
}

// listAdmins also tells of quorums that nobody can meet.
func (t *tool) listAdmins() *cobra.Command {
	return &cobra.Command{
		Use: "list", Args: cobra.NoArgs, Short: "List all, and tell of quorums that they cannot meet",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := list(t, adminTable, func() string { return "admin" })(cmd, args); err != nil {
				return err
			}
			a, err := t.api()
			if err != nil {
				return err
			}
			var p admin.Policy
			if err := a.get(cmd.Context(), "policy", &p); err != nil {
				return err
			}
			warnOfQuorums(cmd, p)
			return nil
		},
	}
}

func warnOfQuorums(cmd *cobra.Command, p admin.Policy) {
	for _, q := range p.Quorums {
		if q.Able < q.Required {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s takes %d administrators, and %d can countersign\n", q.Kind, q.Required, q.Able)
		}
	}
}

// tellQuorum says what a kind of change takes, after a dry run that shows what it does.
func (t *tool) tellQuorum(cmd *cobra.Command, kind policy.Kind) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	var p admin.Policy
	if err := a.get(cmd.Context(), "policy", &p); err != nil {
		return err
	}
	for _, q := range p.Quorums {
		if q.Kind == kind.String() {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s takes %d administrators, and %d can countersign\n", q.Kind, q.Required, q.Able)
		}
	}
	return nil
}

func (t *tool) addAdmin() *cobra.Command {
	var req admin.Administer
	var file, point string
	cmd := &cobra.Command{
		Use: "add NAME --key FILE.pem | --public HEX", Args: cobra.ExactArgs(1), Short: "Let one more person countersign, by the public key",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.PublicKey, err = readPublic(file, point); err != nil {
				return err
			}
			return askFor(t, cmd, asked[admin.Administrator]{adminTable, adminPath(args) + "/add", req, req.DryRun})
		},
	}
	cmd.Flags().StringVar(&file, "key", "", "PEM of the key, public or private, on P-256; only the public half is read")
	cmd.Flags().StringVar(&point, "public", "", "public key in hex, a point of P-256 of 33 or 65 bytes")
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only print what would be asked for, and who would be missing")
	quorumFlags(cmd)
	return cmd
}

func (t *tool) suspendAdmin() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use: "suspend NAME", Args: cobra.ExactArgs(1), Short: "Take no countersignature of it until it is resumed, at once and without a quorum",
		RunE: func(cmd *cobra.Command, args []string) error {
			if dry {
				return show(t, adminTable, adminPath)(cmd, args)
			}
			return act(t, adminTable, "admin", "suspend")(cmd, args)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show who would be suspended")
	return cmd
}

func (t *tool) adminStep(verb, short string, confirm bool) *cobra.Command {
	var req admin.Administer
	var yes bool
	cmd := &cobra.Command{
		Use: verb + " NAME", Args: cobra.ExactArgs(1), Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if confirm && !yes && !req.DryRun {
				ok, err := cli.TerminalOf(cmd).ConfirmName("This is to "+verb+" the administrator "+args[0]+" for ever.", args[0])
				if err != nil {
					return err
				}
				if !ok {
					return cli.Fail(cli.Failed, fmt.Errorf("administrator %s: nothing was done", args[0]), "type its name to confirm, or give --yes")
				}
			}
			return askFor(t, cmd, asked[admin.Administrator]{adminTable, adminPath(args) + "/" + verb, req, req.DryRun})
		},
	}
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only print what would be asked for, and who would be missing")
	if confirm {
		cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	}
	quorumFlags(cmd)
	return cmd
}

// asked is a change that a command asks for: how its result is printed, where it is
// asked for and with what.
type asked[T any] struct {
	table cli.Table[T]
	path  string
	body  any
	dry   bool
}

// askFor posts a change and prints what became of it: its result, the request that
// waits, or with --dry-run the request that it would be.
func askFor[T any](t *tool, cmd *cobra.Command, q asked[T]) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	if q.dry {
		var c admin.Change
		if err := a.post(cmd.Context(), within(cmd, q.path), q.body, &c); err != nil {
			return err
		}
		return changeDetails.One(t.printer(cmd), c)
	}
	var value T
	if err := a.post(cmd.Context(), within(cmd, q.path), q.body, &value); err != nil {
		return t.waiting(cmd, err)
	}
	return q.table.One(t.printer(cmd), value)
}

// madeKey is a new operator's key.
type madeKey struct {
	PublicKey string `json:"public_key"` // hex, 33 bytes
}

var madeTable = cli.Table[madeKey]{{Title: "Public key", Value: func(m madeKey) string { return m.PublicKey }}}

func (t *tool) keygen() *cobra.Command {
	var out string
	var on tokenFlags
	cmd := &cobra.Command{
		Use: "keygen --out FILE | --pkcs11 URI", Args: cobra.NoArgs, Short: "Make an operator's key: on a token, or for development in a file",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var public protocol.PublicKey
			var err error
			switch {
			case (out == "") == (on.uri == ""):
				return cli.Fail(cli.Usage, errors.New("want --out or --pkcs11"), "")
			case out != "":
				fmt.Fprintln(cmd.ErrOrStderr(), "warning: a key in a file is for development: whoever copies the file countersigns; use --pkcs11")
				public, err = writeKey(out)
			default:
				var key operatorKey
				key, err = on.make(cmd)
				public = key.public
			}
			if err != nil {
				return err
			}
			return madeTable.One(t.printer(cmd), madeKey{PublicKey: hex.EncodeToString(public[:])})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write, PKCS#8 PEM, mode 0600; it must not be there")
	on.add(cmd)
	return cmd
}
