package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/internal/cli"
	"countersign/protocol"
)

func (t *tool) change() *cobra.Command {
	r := adminapi.Routes
	cmd := &cobra.Command{Use: "change", Short: "Countersign changes that take more than one administrator"}
	cmd.AddCommand(
		verb("list", "List change requests, newest first", list(t, changeTable, r.ChangeList)),
		verb("show ID", "Show a request, its signatures and the missing ones", show(t, changeDetails, r.ChangeShow)),
		t.sign(), t.addSignature(), t.export(),
		withDryRun("only show the request", show(t, changeDetails, r.ChangeShow), verb("withdraw ID", "End a request, so that it can no longer be countersigned", show(t, changeDetails, r.ChangeWithdraw))),
	)
	return cmd
}

// fetched is a change request as read from its own bytes.
type fetched struct {
	change.Request
	hash     change.Hash
	document []byte
}

// fetch reads a request from its document and ignores the rest of the answer. The id of the document must be the
// requested one.
func (t *tool) fetch(cmd *cobra.Command, id string) (f fetched, err error) {
	c, err := send(t, cmd, adminapi.Routes.ChangeShow, adminapi.None{}, id)
	if err != nil {
		return f, err
	}
	f.document, f.hash = c.Document, change.HashOf(c.Document)
	if want := strings.ToLower(id); want != f.hash.String() && want != f.hash.ID().String() {
		err = fmt.Errorf("the appliance answered with another request than %s", id)
		return f, cli.Fail(cli.BadSignature, err, "do not sign; find out which program answers on --admin")
	}
	f.Request, err = change.Parse(c.Document)
	return f, err
}

func (t *tool) export() *cobra.Command {
	return verb("export ID", "Write the document of a request to standard output, to sign it on another machine", func(cmd *cobra.Command, args []string) error {
		f, err := t.fetch(cmd, args[0])
		if err == nil {
			_, err = cmd.OutOrStdout().Write(f.document)
		}
		return err
	})
}

const dryRunHelp = "only print the request and which administrators would be missing"

// quorumFlags adds the flags of commands that may need a quorum.
func quorumFlags(cmd *cobra.Command) {
	cmd.Flags().Bool("wait", false, "if other administrators must countersign, wait for them")
	cmd.Flags().Duration("expires", change.DefaultLife, "how long they can countersign, at most 168h")
}

// within adds the time of --expires to a route.
func within[Req, Res any](cmd *cobra.Command, route adminapi.Route[Req, Res]) adminapi.Route[Req, Res] {
	life, err := cmd.Flags().GetDuration("expires")
	if err != nil || !cmd.Flags().Changed("expires") {
		return route
	}
	return route.With("life_s", strconv.FormatInt(int64(life/time.Second), 10))
}

// sendChange sends a change and prints its result or the request that waits. With --dry-run it prints the request as it
// would be.
func sendChange[Req, Res any](
	t *tool, cmd *cobra.Command, table cli.Table[Res], route adminapi.Route[Req, Res], body Req, names ...string,
) error {
	if isDry(cmd) {
		return showAnswer(t, cmd, changeDetails, within(cmd, route.Preview()), body, names...)
	}
	return t.waiting(cmd, showAnswer(t, cmd, table, within(cmd, route), body, names...))
}

// waiting prints the request for which a command waits and, with --wait, waits until it ends. It returns any other
// error unchanged.
func (t *tool) waiting(cmd *cobra.Command, err error) error {
	var e *adminapi.Error
	if !errors.As(err, &e) || e.Change == nil {
		return err
	}
	if r, err := change.Parse(e.Change.Document); err == nil {
		showRequest(cmd.ErrOrStderr(), fetched{Request: r, hash: change.HashOf(e.Change.Document)})
	}
	w := waitingChange{Change: *e.Change}
	if e.Invited != nil {
		w.ActivationCode = e.Invited.ActivationCode
	}
	if err := waitingTable.One(t.printer(cmd), w); err != nil {
		return err
	}
	if wait, flagErr := cmd.Flags().GetBool("wait"); flagErr != nil || !wait {
		return err
	}
	return t.awaitEnd(cmd, e.Change.ID)
}

// waitPoll is the time between two looks at a request.
const waitPoll = 500 * time.Millisecond

// awaitEnd waits until a request is executed, or granted to the command that waits. Any other end is an error.
func (t *tool) awaitEnd(cmd *cobra.Command, id string) error {
	ticker := time.NewTicker(waitPoll)
	defer ticker.Stop()
	for {
		c, err := send(t, cmd, adminapi.Routes.ChangeShow, adminapi.None{}, id)
		if err != nil {
			return err
		}
		switch c.State {
		case "open", "taken":
		case "executed", "granted":
			_, err := fmt.Fprintf(cmd.ErrOrStderr(), "change %s is %s\n", cli.Printable(id), cli.Printable(c.State))
			return err
		default:
			return cli.Fail(cli.Denied, fmt.Errorf("change %s is %s: %s", id, c.State, c.Reason), "")
		}
		select {
		case <-cmd.Context().Done():
			return cli.Fail(cli.TryAgain, fmt.Errorf("change %s is still %s", id, c.State), "countersignctl change show "+id)
		case <-ticker.C:
		}
	}
}

// signing has the flags of sign.
type signing struct {
	offline   string
	with      keyFlags
	yes, only bool
}

func (t *tool) sign() *cobra.Command {
	var s signing
	cmd := &cobra.Command{
		Use: "sign ID | sign --offline FILE", Args: cobra.MaximumNArgs(1),
		Short: "Countersign a request with an operator's key, or without one as the admin socket",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (len(args) == 1) == (s.offline != ""):
				return cli.Fail(cli.Usage, errors.New("want the id of a request, or --offline and a file"), "countersignctl change list shows the ids")
			case s.offline != "":
				return s.signOffline(cmd)
			}
			return t.signOnline(cmd, args[0], s)
		},
	}
	cmd.Flags().StringVar(&s.offline, "offline", "", "sign a document that export wrote, and write the signature to standard output")
	cmd.Flags().BoolVar(&s.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&s.only, "dry-run", false, "only show the request")
	s.with.add(cmd)
	return cmd
}

func (s signing) signOffline(cmd *cobra.Command) error {
	document, err := os.ReadFile(s.offline)
	if err != nil {
		return cli.Fail(cli.IO, fmt.Errorf("reading the document: %w", err), "")
	}
	r, err := change.Parse(document)
	if err != nil {
		return fmt.Errorf("%s: %w", s.offline, err)
	}
	signature, err := s.sign(cmd, fetched{Request: r, hash: change.HashOf(document)})
	switch {
	case err != nil || s.only:
		return err
	case signature == nil:
		return cli.Fail(cli.Usage, errors.New("no key"), "give --key or --pkcs11")
	}
	_, err = cmd.OutOrStdout().Write(signature)
	return err
}

func (t *tool) signOnline(cmd *cobra.Command, id string, s signing) error {
	f, err := t.fetch(cmd, id)
	if err != nil {
		return err
	}
	signature, err := s.sign(cmd, f)
	if err != nil || s.only {
		return err
	}
	return t.handIn(cmd, id, signature)
}

// sign shows a request, asks, and signs it. With --dry-run it only shows it. It returns no signature without a key.
func (s signing) sign(cmd *cobra.Command, f fetched) ([]byte, error) {
	showRequest(cmd.ErrOrStderr(), f)
	if s.only {
		return nil, nil
	}
	if !s.yes {
		ok, err := cli.TerminalOf(cmd).Confirm("Countersign this?")
		if err == nil && !ok {
			err = cli.Fail(cli.Failed, errors.New("nothing was signed"), "answer y, or give --yes")
		}
		if err != nil {
			return nil, err
		}
	}
	return s.with.sign(cmd, f.hash)
}

// handIn sends a signature, or without one the countersignature of the admin socket.
func (t *tool) handIn(cmd *cobra.Command, id string, signature []byte) error {
	return t.waiting(cmd, showAnswer(t, cmd, changeDetails, adminapi.Routes.ChangeSign, adminapi.Sign{Signature: signature}, id))
}

func (t *tool) addSignature() *cobra.Command {
	var dry bool
	cmd := verb("add-signature ID FILE", "Hand in a signature from another machine; FILE - is standard input", func(cmd *cobra.Command, args []string) error {
		raw, err := readSignature(cmd.InOrStdin(), args[1])
		if err != nil {
			return cli.Fail(cli.IO, fmt.Errorf("reading the signature: %w", err), "")
		}
		signature, err := change.ParseSignature(raw)
		if err != nil {
			return cli.Fail(cli.BadSignature, err, "want the output of countersignctl change sign --offline, see CHANGE.md")
		}
		if dry {
			return t.verify(cmd, args[0], signature)
		}
		return t.handIn(cmd, args[0], raw)
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only verify it")
	return cmd
}

// maxSignature bounds the input for a signature of 83 bytes.
const maxSignature = 4096

func readSignature(stdin io.Reader, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(stdin, maxSignature))
	}
	return os.ReadFile(path)
}

// verify verifies a signature with the key that the appliance has for its signer, and prints the administrator.
func (t *tool) verify(cmd *cobra.Command, id string, signature change.Signature) error {
	f, err := t.fetch(cmd, id)
	if err != nil {
		return err
	}
	all, err := send(t, cmd, adminapi.Routes.AdminList, adminapi.None{})
	if err != nil {
		return err
	}
	for _, one := range all {
		if one.Signer != signature.Signer.String() {
			continue
		}
		var public protocol.PublicKey
		raw, err := hex.DecodeString(one.PublicKey)
		if err == nil {
			public, err = protocol.ParsePublicKey(raw)
		}
		if err != nil {
			return fmt.Errorf("public key of %s: %w", one.Name, err)
		}
		if err := signature.Verify(f.hash, public); err != nil {
			return cli.Fail(cli.BadSignature, err, "was it made for this request?")
		}
		return adminTable.One(t.printer(cmd), one)
	}
	return cli.Fail(cli.Denied, fmt.Errorf("no administrator has key %s", signature.Signer), "countersignctl admin list")
}
