package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/policy"
)

// This file makes changes that may wait for other administrators.

const dryRunHelp = "only print the request and which administrators would be missing"

// quorumFlags adds the flags of commands that may need a quorum.
func quorumFlags(cmd *cobra.Command) {
	cmd.Flags().Bool("wait", false, "if other administrators must countersign, wait for them")
	life := span{Duration: change.DefaultLife, most: change.MaxLife}
	cmd.Flags().Var(&life, "expires", "time administrators have to countersign, at most "+life.longest())
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
		return previewChange(t, cmd, route, body, names...)
	}
	return t.waiting(cmd, showAnswer(t, cmd, table, within(cmd, route), body, names...))
}

// previewChange prints the request that a change would make.
func previewChange[Req, Res any](
	t *tool, cmd *cobra.Command, route adminapi.Route[Req, Res], body Req, names ...string,
) error {
	c, err := send(t, cmd, within(cmd, route).Preview(), body, names...)
	if err != nil {
		return err
	}
	return t.printChange(cmd, c)
}

// waiting prints the request that a command made and that waits for other administrators: the command succeeded. With
// --wait it waits until the request ends. It returns any other error unchanged.
func (t *tool) waiting(cmd *cobra.Command, err error) error {
	_, err = t.await(cmd, err)
	return err
}

// granted is waiting for a command that has nothing to deliver before the request has its quorum: without --wait it
// returns an error.
func (t *tool) granted(cmd *cobra.Command, err error) error {
	c, err := t.await(cmd, err)
	if err != nil || c == nil {
		return err
	}
	if c.Kind == policy.StoreBackup.String() {
		return fault.CopyWaits.With("kind", c.Kind, "id", c.ID).Error()
	}
	return fault.NothingWritten.With("kind", c.Kind, "id", c.ID).Error()
}

// await prints the request for which a command waits, if err says so. It returns the request, or with --wait nil once
// the request has ended.
func (t *tool) await(cmd *cobra.Command, err error) (*adminapi.Change, error) {
	c, err := t.printWaiting(cmd, err)
	if wait, flagErr := cmd.Flags().GetBool("wait"); err == nil && c != nil && flagErr == nil && wait {
		return nil, t.awaitEnd(cmd, c.ID)
	}
	return c, err
}

// printWaiting prints the request for which a command waits. It returns nil if err is another error, or none.
func (t *tool) printWaiting(cmd *cobra.Command, err error) (*adminapi.Change, error) {
	var e *adminapi.Error
	if !errors.As(err, &e) || e.Change == nil {
		return nil, err
	}
	if r, err := change.Parse(e.Change.Document); err == nil {
		showRequest(cmd.ErrOrStderr(), fetched{Request: r, hash: change.HashOf(e.Change.Document)})
	}
	w := waitingChange{Change: *e.Change}
	if e.Invited != nil {
		w.ActivationCode = e.Invited.ActivationCode
	}
	if err := detailsOfWaiting(w).One(t.printer(cmd), w); err != nil {
		return nil, err
	}
	announce(cmd.ErrOrStderr(), *e.Change)
	return e.Change, nil
}

// announce says how far a request got after a command made or countersigned it.
func announce(w io.Writer, c adminapi.Change) {
	begin := "requested"
	if c.CountersignedAs != "" {
		begin = "countersigned as " + c.CountersignedAs
	}
	if c.State != "open" {
		fmt.Fprintf(w, "%s; change %s is %s\n", cli.Printable(begin), cli.Printable(c.ID), cli.Printable(stateWords(c)))
		if c.State == "granted" {
			fmt.Fprintln(w, "run the backup command within an hour: the grant serves one backup")
		}
		return
	}
	fmt.Fprintf(w, "%s; %d more needed: %s, before %s\n",
		cli.Printable(begin), c.More, cli.Printable(choiceWords(c)), clock(c.ExpiresAt, time.Now()))
	fmt.Fprintf(w, "to countersign: countersignctl change sign %s, with --pkcs11 or --key\n", cli.Printable(c.ID))
}

// clock formats a time of today without its date.
func clock(t, now time.Time) string {
	t, now = t.UTC(), now.UTC()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04 UTC")
	}
	return t.Format("2006-01-02 15:04 UTC")
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
			return fault.ChangeEnded.With("id", id, "state", stateWords(c)).Error()
		}
		select {
		case <-cmd.Context().Done():
			return fault.WaitInterrupted.With("id", id, "state", c.State).Error()
		case <-ticker.C:
		}
	}
}
