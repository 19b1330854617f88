package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/cmd/internal/cli"
	"countersign/protocol"
)

// maxCodeBytes bounds an activation code read from standard input.
const maxCodeBytes = 256

func (a *app) enrolCommand() *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use:   "enrol --url URL CODE",
		Short: "Make a signing key and enrol it with an activation code",
		Long: "enrol makes a signing key and enrols it at the appliance. CODE names the appliance's root key, so that no\n" +
			"other server is believed; - reads it from standard input. After an interruption run it again.",
		Example: "  countersign-client enrol --url https://appliance:8443 OA1-…",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.enrol(cmd, url, args[0]) },
	}
	cmd.Flags().StringVar(&url, "url", "", "address of the appliance: https://HOST:PORT")
	_ = cmd.MarkFlagRequired("url") // it was defined above
	return cmd
}

func (a *app) enrol(cmd *cobra.Command, url, text string) (err error) {
	if text == "-" {
		line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), maxCodeBytes)).ReadString('\n')
		if err != nil && err != io.EOF {
			return cli.Fail(cli.IO, fmt.Errorf("reading the activation code: %w", err), "")
		}
		text = strings.TrimSpace(line)
	}
	code, err := protocol.ParseActivationCode(text)
	if err != nil {
		return cli.Fail(cli.Usage, err, "copy the whole code that countersignctl client invite printed")
	}
	if !strings.HasPrefix(url, "https://") {
		return cli.Fail(cli.Usage, fmt.Errorf("address %q is not https://HOST:PORT", url), "")
	}
	c, err := a.open(cmd.Context(), false)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	s, err := c.Enrol(cmd.Context(), client.EnrolConfig{URL: url, Code: code})
	if err != nil {
		return explain(err)
	}
	return statusTable.One(a.printer(cmd), statusOf(c, s))
}

// status is [client.Status] as data.
type status struct {
	ClientID   string   `json:"client_id"`
	URL        string   `json:"url"`
	EnrolledAt string   `json:"enrolled_at"`
	Root       string   `json:"root"`
	RootNumber uint64   `json:"root_number"`
	KEMEpoch   uint64   `json:"kem_epoch"`
	KEMUntil   string   `json:"kem_until"`
	Counter    uint32   `json:"counter"`
	Pending    *outcome `json:"pending,omitempty"`
}

func statusOf(c *client.Client, s client.Status) status {
	out := status{
		ClientID: s.Client.String(), URL: s.URL, EnrolledAt: s.EnrolledAt.Format(time.RFC3339), Root: s.Root.String(),
		RootNumber: s.RootNumber, KEMEpoch: s.KEMEpoch, KEMUntil: s.KEMUntil.Format(time.RFC3339), Counter: s.Counter,
	}
	if s.Pending != nil {
		o := outcomeOf(c, *s.Pending)
		out.Pending = &o
	}
	return out
}

var statusTable = cli.Table[status]{
	{Title: "client", Value: func(s status) string { return s.ClientID }},
	{Title: "appliance", Value: func(s status) string { return s.URL }},
	{Title: "enrolled", Value: func(s status) string { return s.EnrolledAt }},
	{Title: "root", Value: func(s status) string { return fmt.Sprintf("%s (number %d)", s.Root, s.RootNumber) }},
	{Title: "kem", Value: func(s status) string { return fmt.Sprintf("epoch %d until %s", s.KEMEpoch, s.KEMUntil) }},
	{Title: "counter", Value: func(s status) string { return strconv.Itoa(int(s.Counter)) }},
	{Title: "pending", Value: func(s status) string {
		if s.Pending == nil {
			return "none"
		}
		return s.Pending.Serial + ": resume it"
	}},
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the enrolment and what is pending", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.open(cmd.Context(), true)
			if err != nil {
				return err
			}
			s, err := c.Status()
			if err != nil {
				return explain(err)
			}
			return statusTable.One(a.printer(cmd), statusOf(c, s))
		},
	}
}

func (a *app) receiptsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "receipts", Short: "List what became of each authorization, the oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.open(cmd.Context(), true)
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
}
