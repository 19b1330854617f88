package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/protocol"
)

// outcome is the output form of an authorization's outcome.
type outcome struct {
	Result      string        `json:"result"` // approved, denied, pending, retry or unknown
	Code        protocol.Code `json:"code"`   // PROTOCOL.md §4; 0: none
	Reason      string        `json:"reason,omitempty"`
	Serial      string        `json:"serial"`
	Service     uint64        `json:"service"`
	ServiceName string        `json:"service_name"`
	Level       uint8         `json:"level,omitempty"`
	Device      string        `json:"device,omitempty"`
	DeviceName  string        `json:"device_name,omitempty"`
	Amount      string        `json:"amount,omitempty"`
	Text        string        `json:"text,omitempty"`
	RetryS      int           `json:"retry_s,omitempty"`
	TriesLeft   *uint64       `json:"tries_left,omitempty"`  // passwords; nil: unknown
	Performed   *bool         `json:"performed,omitempty"`   // as the device reported; nil: unknown
	Approves    uint64        `json:"approves,omitempty"`    // the other client's service, if this approves one
	Receipt     string        `json:"receipt,omitempty"`     // full receipt: verified, unverified, or given up
	GivenUpOn   string        `json:"given_up_on,omitempty"` // date when the key that signed the receipt was given up
	At          string        `json:"at,omitempty"`
}

const unknown = "unknown"

func outcomeOf(c *client.Client, r client.Receipt) outcome {
	o := outcome{
		Result: unknown, Serial: r.Serial.String(), Service: uint64(r.Service), ServiceName: c.Name(r.Service),
		Level: uint8(r.Level), Device: r.Device.String(), DeviceName: r.DeviceName, Amount: formatAmount(r.Amount), Text: r.Text,
		At: r.At.Format(time.RFC3339),
	}
	if r.Known {
		o.Result, o.Code, o.RetryS, o.TriesLeft = r.Result.String(), r.Reason, int(r.Retry/time.Second), r.TriesLeft
		o.Performed = r.Performed
	}
	if r.Approves != nil {
		o.Approves = uint64(*r.Approves)
	}
	if o.Code != 0 {
		o.Reason = o.Code.String()
	}
	switch {
	case r.Verified:
		o.Receipt = "verified"
	case !r.GivenUp.IsZero():
		o.Receipt, o.GivenUpOn = "given up", r.GivenUp.Format(time.DateOnly)
	case r.Decision != nil:
		o.Receipt = "unverified"
	}
	return o
}

// refused returns the outcome of a refusal before anything was signed.
func refused(c *client.Client, e *client.RefusedError) outcome {
	return outcome{
		Result: protocol.ResultDenied.String(), Code: e.Code, Reason: e.Code.String(), Serial: e.Serial.String(),
		Service: uint64(e.Service), ServiceName: c.Name(e.Service), RetryS: int(e.Retry / time.Second),
	}
}

var outcomeTable = cli.Table[outcome]{
	{Title: "result", Value: func(o outcome) string {
		if o.Reason != "" {
			return o.Result + " (" + o.Reason + ")"
		}
		return o.Result
	}},
	{Title: "act", Value: func(o outcome) string {
		switch {
		case o.Performed == nil:
			return ""
		case *o.Performed:
			return "performed"
		}
		return "not performed"
	}},
	{Title: "serial", Value: func(o outcome) string { return o.Serial }},
	{Title: "service", Value: func(o outcome) string {
		if o.Approves != 0 {
			return fmt.Sprintf("%s (service %d)", o.ServiceName, o.Approves)
		}
		return o.ServiceName
	}},
	{Title: "level", Value: func(o outcome) string {
		if o.Level == 0 { // refused before the appliance chose one
			return ""
		}
		return strconv.Itoa(int(o.Level))
	}},
	{Title: "device", Value: func(o outcome) string { return quoted(o.DeviceName) }},
	{Title: "amount", Value: func(o outcome) string { return o.Amount }},
	{Title: "text", Value: func(o outcome) string { return quoted(o.Text) }},
	{Title: "receipt", Value: func(o outcome) string {
		if o.GivenUpOn != "" {
			return "signed under a key given up on " + o.GivenUpOn
		}
		return o.Receipt
	}},
	{Title: "at", Value: func(o outcome) string { return o.At }},
}

// quoted marks the device's own words.
func quoted(s string) string {
	if s == "" {
		return ""
	}
	return strconv.Quote(s)
}

// report prints an authorization and returns the error with its exit code. Only an approval exits
// with 0.
func (a *app) report(cmd *cobra.Command, c *client.Client, r client.Receipt, err error) error {
	var before *client.RefusedError
	switch {
	case r.Statement == nil && errors.As(err, &before):
		return errors.Join(outcomeTable.One(a.printer(cmd), refused(c, before)), explain(err))
	case r.Statement == nil:
		return explain(err)
	}
	if printErr := outcomeTable.One(a.printer(cmd), outcomeOf(c, r)); printErr != nil {
		return errors.Join(printErr, err)
	}
	if err != nil {
		return explain(err)
	}
	return verdict(r)
}

// verdict returns the error of a known result.
func verdict(r client.Receipt) error {
	switch {
	case r.Approved():
		return nil
	case r.Result == protocol.ResultPending:
		return fault.DeniedPending.With("serial", r.Serial.String()).Of(protocol.CodePending)
	case r.Verdict == protocol.Refuse:
		return fault.YouRefused.Error()
	}
	row := rowOf(r.Reason)
	if row.Exit == fault.Failed || row.Exit == fault.Unavailable {
		row.Exit = fault.Denied // an authentic denial, for any reason
	}
	text := r.Reason.String()
	if r.TriesLeft != nil && r.Reason == protocol.CodePassword {
		text += ", " + tries(*r.TriesLeft) + " left"
	}
	if r.Retry != 0 {
		text += fmt.Sprintf(", retry in %v", r.Retry)
	}
	return row.Of(fmt.Errorf("the appliance denied it: %s", text))
}

// parseAmount parses "12.00 EUR", or "12.00" with a separate currency. The number has all decimals
// of the currency, or none.
func parseAmount(amount, currency string) (*protocol.Amount, error) {
	number, unit, both := strings.Cut(amount, " ")
	if both == (currency != "") {
		return nil, errors.New(`write the amount as "12.00 EUR", or as 12.00 with --currency EUR`)
	}
	if !both {
		unit = currency
	}
	digits, known := protocol.MinorDigits(unit)
	if !known {
		return nil, fmt.Errorf("unknown currency %q", unit)
	}
	whole, fraction, point := strings.Cut(number, ".")
	if point && len(fraction) != digits || strings.Trim(whole+fraction, "0123456789") != "" || whole == "" {
		return nil, fmt.Errorf("amount %q: want digits with %d decimals", number, digits)
	}
	if !point {
		fraction = strings.Repeat("0", digits)
	}
	minor, err := strconv.ParseUint(whole+fraction, 10, 64)
	if err != nil || minor > protocol.MaxMinor {
		return nil, fmt.Errorf("amount %q is too large", number)
	}
	return &protocol.Amount{Minor: minor, Currency: unit}, nil
}

// formatAmount returns the form that parseAmount parses, "" for nil. Users never see a currency that is unknown,
// because the client refuses it earlier.
func formatAmount(a *protocol.Amount) string {
	if a == nil {
		return ""
	}
	return a.Decimal()
}

func (a *app) receiptsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "receipts", Short: "List the outcome of each authorization, oldest first", Args: cobra.NoArgs,
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
		Short: "Verify the stored full receipts offline",
		Long: "verify checks that the decision in a full receipt is signed by a key of the pinned root, or of a root that it\n" +
			"replaced by routine, and matches the countersigned statement. A key or root that was given up as compromised\n" +
			"proves nothing, because another party may have signed with it. Without a serial it checks all receipts.\n\n" +
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
		var given *client.GivenUpError
		if err != nil && !errors.Is(err, client.ErrReceipt) && !errors.As(err, &given) {
			return explain(err)
		}
		rows, bad = append(rows, outcomeOf(c, r)), errors.Join(bad, err)
	}
	if len(rows) == 0 {
		return fault.NoFullReceipt.Error()
	}
	if err := outcomeTable.List(a.printer(cmd), rows); err != nil {
		return errors.Join(err, explain(bad))
	}
	return explain(bad)
}
