package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/appliance/change"
	"countersign/internal/cli"
)

func (t *tool) change() *cobra.Command {
	cmd := &cobra.Command{Use: "change", Short: "Countersign changes that take more than one administrator"}
	cmd.AddCommand(
		&cobra.Command{
			Use: "list", Args: cobra.NoArgs, Short: "List change requests, the newest first",
			RunE: list(t, changeTable, func() string { return "change" }),
		},
		&cobra.Command{
			Use: "show ID", Args: cobra.ExactArgs(1), Short: "Show what a request asks for, and who is missing",
			RunE: show(t, changeDetails, func(args []string) string { return "change/" + args[0] }),
		},
		t.sign(), t.addSignature(), t.export(), t.withdraw(),
	)
	return cmd
}

// fetch asks for a request and reads it from its own bytes: what the server says of it
// beside them is not looked at. The id that was asked for must be that of the bytes.
func (t *tool) fetch(ctx context.Context, id string) (change.Request, change.Hash, []byte, error) {
	var r change.Request
	a, err := t.api()
	if err != nil {
		return r, change.Hash{}, nil, err
	}
	var c admin.Change
	if err := a.get(ctx, "change/"+id, &c); err != nil {
		return r, change.Hash{}, nil, err
	}
	hash := change.HashOf(c.Document)
	if asked := strings.ToLower(id); asked != hash.String() && asked != hash.ID().String() {
		return r, hash, nil, cli.Fail(cli.BadSignature, fmt.Errorf("the appliance answered with another request than %s", id), "do not sign; find out who answers on --admin")
	}
	r, err = change.Parse(c.Document)
	return r, hash, c.Document, err
}

func (t *tool) export() *cobra.Command {
	return &cobra.Command{
		Use: "export ID", Args: cobra.ExactArgs(1), Short: "Write the document of a request to standard output, to be signed elsewhere",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, _, document, err := t.fetch(cmd.Context(), args[0])
			if err == nil {
				_, err = cmd.OutOrStdout().Write(document)
			}
			return err
		},
	}
}

func (t *tool) withdraw() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use: "withdraw ID", Args: cobra.ExactArgs(1), Short: "End a request that nobody is to countersign any more",
		RunE: func(cmd *cobra.Command, args []string) error {
			if dry {
				return show(t, changeDetails, func(args []string) string { return "change/" + args[0] })(cmd, args)
			}
			return act(t, changeDetails, "change", "withdraw")(cmd, args)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what would be withdrawn")
	return cmd
}

// waiting prints the request that a command waits for and, with --wait, waits until it
// came to its end. Another error is returned as it is.
func (t *tool) waiting(cmd *cobra.Command, err error) error {
	var quorum *quorumError
	if !errors.As(err, &quorum) || quorum.change == nil {
		return err
	}
	if shown := t.showWaiting(cmd, quorum); shown != nil {
		return shown
	}
	wait, flagErr := cmd.Flags().GetBool("wait")
	if flagErr != nil || !wait {
		return err
	}
	return t.awaitEnd(cmd, quorum.change.ID)
}

func (t *tool) showWaiting(cmd *cobra.Command, q *quorumError) error {
	if r, err := change.Parse(q.change.Document); err == nil {
		showRequest(cmd.ErrOrStderr(), r, change.HashOf(q.change.Document))
	}
	w := waitingChange{Change: *q.change}
	if q.invited != nil {
		w.ActivationCode = q.invited.ActivationCode
	}
	return waitingTable.One(t.printer(cmd), w)
}

// waitPoll is between two looks at a request.
const waitPoll = 500 * time.Millisecond

// awaitEnd waits until a request is over.
func (t *tool) awaitEnd(cmd *cobra.Command, id string) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	ticker := time.NewTicker(waitPoll)
	defer ticker.Stop()
	for {
		var c admin.Change
		if err := a.get(cmd.Context(), "change/"+id, &c); err != nil {
			return err
		}
		switch c.State {
		case "open", "taken":
		case "executed":
			_, err := fmt.Fprintf(cmd.ErrOrStderr(), "change %s is executed\n", id)
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

// quorumFlags are of commands that may need a quorum.
func quorumFlags(cmd *cobra.Command) {
	cmd.Flags().Bool("wait", false, "where more administrators have to countersign: wait for them")
	cmd.Flags().Duration("expires", change.DefaultLife, "how long they may, at most 168h")
}

// within puts the time that --expires gives into a path of the API.
func within(cmd *cobra.Command, path string) string {
	life, err := cmd.Flags().GetDuration("expires")
	if err != nil || !cmd.Flags().Changed("expires") {
		return path
	}
	return path + "?life_s=" + strconv.FormatInt(int64(life/time.Second), 10)
}
