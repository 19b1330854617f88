package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// Receipt is the outcome of one countersignature.
type Receipt struct {
	// The signed statement and its contents.
	Statement  message.Statement
	Serial     protocol.Serial
	Service    protocol.Service
	Level      protocol.Level
	Device     protocol.DeviceHandle
	DeviceName string
	Amount     *protocol.Amount
	Text       string
	Verdict    protocol.Verdict // the user's
	// Approves is the other client's service that this one approves, with
	// protocol.ServiceCoApproval.
	Approves *protocol.Service

	// Known is false without an authentic answer: the operation may or may not have been carried
	// out, and Result is meaningless.
	Known  bool
	Result protocol.Result
	Reason protocol.Code
	Retry  time.Duration // with CodeLocked; 0: unknown
	// TriesLeft is the number of passwords left; nil: unknown.
	TriesLeft *uint64
	// Performed is what the device reported about the act of an approval; nil: nothing that this client knows.
	Performed *bool

	// Decision is the full receipt, or nil. Verified means that its signature chains to the pinned root or an earlier
	// one, and that it is about this statement. It is judged anew whenever the receipt is read. GivenUp is not zero if
	// only a key that was given up as compromised verifies it, which may have been used by another party.
	Decision []byte
	Verified bool
	GivenUp  time.Time
	KeyCert  []byte // verified the decision on arrival, or nil

	At time.Time
}

// Approved reports whether the operation was approved.
func (r Receipt) Approved() bool { return r.Known && r.Result == protocol.ResultApproved }

// Final reports whether the outcome is known and cannot change.
func (r Receipt) Final() bool {
	return r.Known && (r.Result == protocol.ResultApproved || r.Result == protocol.ResultDenied)
}

// Settled reports whether nothing is left to ask the appliance: the outcome is a denial, or an approval whose act the
// device has reported.
func (r Receipt) Settled() bool { return r.Final() && (!r.Approved() || r.Performed != nil) }

// receiptJSON is the file of a receipt, receipts/<serial>.json. It does not repeat the contents of
// the statement.
type receiptJSON struct {
	Statement protocol.Base64  `json:"statement"`
	Verdict   protocol.Verdict `json:"verdict"`
	Known     bool             `json:"known"`
	Result    protocol.Result  `json:"result"`
	Reason    protocol.Code    `json:"reason"`
	Retry     uint64           `json:"retry_s,omitempty"`
	TriesLeft *uint64          `json:"tries_left,omitempty"`
	Performed *bool            `json:"performed,omitempty"`
	Decision  protocol.Base64  `json:"decision,omitempty"`
	Verified  bool             `json:"verified,omitempty"` // of earlier releases, not read
	KeyCert   protocol.Base64  `json:"key_cert,omitempty"` // verified the decision
	At        time.Time        `json:"at"`
}

const receiptDir = "receipts"

func receiptFile(serial protocol.Serial) string {
	return path.Join(receiptDir, serial.String()+".json")
}

// newReceipt returns a receipt of unknown outcome.
func newReceipt(s message.Statement, verdict protocol.Verdict, at time.Time) (Receipt, error) {
	f, err := message.ParseStatement(s)
	if err != nil {
		return Receipt{}, err
	}
	return Receipt{
		Statement: s, Serial: f.P1.Serial, Service: f.P1.Service, Level: f.P2.Level, Device: f.P2.Device,
		DeviceName: f.P2.DeviceName, Amount: f.P2.Amount, Text: f.P2.Text, Verdict: verdict,
		Approves: f.P2.FirstService, At: stamp(at),
	}, nil
}

// stamp returns a time in the form that receipts store.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func (c *Client) storeReceipt(r Receipt) error {
	b, err := json.MarshalIndent(receiptJSON{
		Statement: protocol.Base64(r.Statement), Verdict: r.Verdict, Known: r.Known, Result: r.Result, Reason: r.Reason,
		Retry: uint64(r.Retry / time.Second), TriesLeft: r.TriesLeft, Performed: r.Performed, Decision: r.Decision,
		KeyCert: r.KeyCert, At: r.At,
	}, "", " ")
	if err != nil {
		return fmt.Errorf("encoding receipt %v: %w", r.Serial, err)
	}
	if err := c.dir.Write(receiptFile(r.Serial), append(b, '\n')); err != nil {
		return fmt.Errorf("storing receipt %v: %w", r.Serial, err)
	}
	return nil
}

// receipt reads a receipt file. It returns fs.ErrNotExist if there is none.
func (c *Client) receipt(serial protocol.Serial) (Receipt, error) {
	b, err := c.dir.Read(receiptFile(serial))
	if err != nil {
		return Receipt{}, fmt.Errorf("reading receipt %v: %w", serial, err)
	}
	var w receiptJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil {
		return Receipt{}, fmt.Errorf("receipt %v: %v: %w", serial, err, ErrState)
	}
	r, err := newReceipt(message.Statement(w.Statement), w.Verdict, w.At)
	if err != nil || r.Serial != serial {
		return Receipt{}, fmt.Errorf("receipt %v is not of this serial: %w", serial, ErrState)
	}
	r.Known, r.Result, r.Reason, r.Retry = w.Known, w.Result, w.Reason, seconds(w.Retry)
	r.TriesLeft, r.Performed, r.Decision, r.KeyCert = w.TriesLeft, w.Performed, w.Decision, w.KeyCert
	if r.Decision == nil || c.state.Enrolment == nil {
		return r, nil
	}
	_, err = c.checkDecision(r)
	return r.judged(err), nil
}

// Receipt returns the receipt of a serial, also of a session without a result, or [ErrNoReceipt].
func (c *Client) Receipt(serial protocol.Serial) (Receipt, error) {
	if r, ok := c.open(); ok && r.Serial == serial {
		return r, nil
	}
	r, err := c.receipt(serial)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%v: %w", serial, ErrNoReceipt)
	}
	return r, err
}

// VerifyReceipt verifies the full receipt of a serial again, offline: its signature against the
// pinned root and earlier ones, and its contents against the countersigned statement. Errors are [ErrNotEnrolled],
// [ErrNoReceipt] without a full receipt, [ErrReceipt], and [GivenUpError].
func (c *Client) VerifyReceipt(serial protocol.Serial) (Receipt, error) {
	if c.state.Enrolment == nil {
		return Receipt{}, ErrNotEnrolled
	}
	r, err := c.Receipt(serial)
	if err != nil {
		return r, err
	}
	if r.Decision == nil {
		return r, fmt.Errorf("%v is not a full receipt: %w", serial, ErrNoReceipt)
	}
	_, err = c.checkDecision(r)
	var given *GivenUpError
	switch {
	case errors.As(err, &given):
		return r, fmt.Errorf("receipt %v does not prove anything: %w", serial, given)
	case err != nil:
		return r, fmt.Errorf("%v: %w: %w", serial, ErrReceipt, err)
	}
	return r, nil
}

// judged returns the receipt with Verified and GivenUp by an error of checkDecision.
func (r Receipt) judged(err error) Receipt {
	r.Verified = err == nil
	var given *GivenUpError
	if errors.As(err, &given) {
		r.GivenUp = given.Date()
	}
	return r
}

// signed is what a verified decision shows.
type signed struct {
	by       trust.ReceiptKey
	issuedAt uint64 // Unix seconds by the appliance's clock
}

// checkDecision verifies the decision of a receipt, and that it is about the statement. It returns a [GivenUpError] if
// only a key that was given up verifies it.
func (c *Client) checkDecision(r Receipt) (signed, error) {
	pinned, _ := c.trustNow()
	d, by, err := receipt.VerifyKept(pinned.ReceiptKeys(r.KeyCert), r.Decision)
	var given *GivenUpError
	if err != nil && !errors.As(err, &given) {
		return signed{}, err
	}
	if bad := r.fits(d); bad != nil {
		return signed{}, bad
	}
	return signed{by, d.IssuedAt}, err
}

// fits returns CodePolicy unless a decision matches the countersigned statement.
func (r Receipt) fits(d receipt.Decision) error {
	f, err := message.ParseStatement(r.Statement)
	if err != nil {
		return err
	}
	own := r.Statement.Hash()
	first, second, service := own, (*[32]byte)(nil), r.Service
	if r.Approves != nil {
		first, second, service = *f.P2.FirstStatement, &own, *r.Approves
	}
	amount := func(a *protocol.Amount) protocol.Amount {
		if a == nil {
			return protocol.Amount{}
		}
		return *a
	}
	switch {
	case d.Statement != first, second != nil && (d.SecondStatement == nil || *d.SecondStatement != *second):
		return fmt.Errorf("decision on another statement: %w", protocol.CodePolicy)
	case d.Result != r.Result, d.Service != service, d.Level != r.Level, d.Device.Handle() != r.Device,
		amount(d.Amount) != amount(r.Amount):
		return fmt.Errorf("decision differs from the countersigned statement: %w", protocol.CodePolicy)
	}
	return nil
}

// Receipts returns all receipts, the oldest first.
func (c *Client) Receipts() ([]Receipt, error) {
	names, err := c.dir.List(receiptDir)
	if err != nil {
		return nil, fmt.Errorf("listing receipts: %w", err)
	}
	var list []Receipt
	for _, name := range names {
		serial, err := protocol.ParseSerial(name[:len(name)-len(path.Ext(name))])
		if err != nil {
			return nil, fmt.Errorf("%s is not a receipt: %w", c.dir.Path(path.Join(receiptDir, name)), ErrState)
		}
		r, err := c.receipt(serial)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// seconds converts to a duration of at most a day, which is longer than any useful ttl or retry
// time.
func seconds(n uint64) time.Duration { return time.Duration(min(n, 24*3600)) * time.Second }
