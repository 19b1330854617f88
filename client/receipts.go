package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"time"

	"countersign/protocol"
)

// Receipt is what became of one countersignature.
type Receipt struct {
	// The statement that was signed, and what it says.
	Statement  protocol.Statement
	Serial     protocol.Serial
	Service    protocol.Service
	Level      protocol.Level
	Device     protocol.DeviceHandle
	DeviceName string
	Amount     *protocol.Amount
	Text       string
	Verdict    protocol.Verdict // the user's

	// Known is false where no authentic answer came: the operation may have been
	// carried out or not, and Result says nothing.
	Known  bool
	Result protocol.Result
	Reason protocol.Code
	Retry  time.Duration // with CodeLocked; 0: not said

	// Decision is the full receipt, or nil. Verified says that its signature chains
	// to the pinned root and that it is on this statement.
	Decision []byte
	Verified bool

	At time.Time
}

// Approved says whether the operation was approved.
func (r Receipt) Approved() bool { return r.Known && r.Result == protocol.ResultApproved }

// receiptJSON is a receipt's file, receipts/<serial>.json. What the statement says
// is not repeated.
type receiptJSON struct {
	Statement protocol.Base64  `json:"statement"`
	Verdict   protocol.Verdict `json:"verdict"`
	Known     bool             `json:"known"`
	Result    protocol.Result  `json:"result"`
	Reason    protocol.Code    `json:"reason"`
	Retry     uint64           `json:"retry_s,omitempty"`
	Decision  protocol.Base64  `json:"decision,omitempty"`
	Verified  bool             `json:"verified,omitempty"`
	At        time.Time        `json:"at"`
}

const receiptDir = "receipts"

func receiptFile(serial protocol.Serial) string {
	return path.Join(receiptDir, serial.String()+".json")
}

// newReceipt is one of unknown outcome.
func newReceipt(s protocol.Statement, verdict protocol.Verdict, at time.Time) (Receipt, error) {
	f, err := protocol.ParseStatement(s)
	if err != nil {
		return Receipt{}, err
	}
	return Receipt{
		Statement: s, Serial: f.P1.Serial, Service: f.P1.Service, Level: f.P2.Level, Device: f.P2.Device,
		DeviceName: f.P2.DeviceName, Amount: f.P2.Amount, Text: f.P2.Text, Verdict: verdict, At: at.UTC().Truncate(time.Second),
	}, nil
}

func (c *Client) storeReceipt(r Receipt) error {
	b, err := json.MarshalIndent(receiptJSON{
		Statement: protocol.Base64(r.Statement), Verdict: r.Verdict, Known: r.Known, Result: r.Result, Reason: r.Reason,
		Retry: uint64(r.Retry / time.Second), Decision: r.Decision, Verified: r.Verified, At: r.At,
	}, "", " ")
	if err != nil {
		return fmt.Errorf("encoding receipt %v: %w", r.Serial, err)
	}
	if err := c.dir.Write(receiptFile(r.Serial), append(b, '\n')); err != nil {
		return fmt.Errorf("storing receipt %v: %w", r.Serial, err)
	}
	return nil
}

// receipt reads one: fs.ErrNotExist if there is none.
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
	r, err := newReceipt(protocol.Statement(w.Statement), w.Verdict, w.At)
	if err != nil || r.Serial != serial {
		return Receipt{}, fmt.Errorf("receipt %v is not of this serial: %w", serial, ErrState)
	}
	r.Known, r.Result, r.Reason, r.Retry = w.Known, w.Result, w.Reason, seconds(w.Retry)
	r.Decision, r.Verified = w.Decision, w.Verified
	return r, nil
}

// Receipts lists all receipts, the oldest first.
func (c *Client) Receipts() ([]Receipt, error) {
	names, err := c.dir.List(receiptDir)
	if err != nil {
		return nil, fmt.Errorf("listing receipts: %w", err)
	}
	var list []Receipt
	for _, name := range names {
		serial, err := protocol.ParseSerial(name[:len(name)-len(path.Ext(name))])
		if err != nil {
			return nil, fmt.Errorf("%s is no receipt: %w", c.dir.Path(path.Join(receiptDir, name)), ErrState)
		}
		r, err := c.receipt(serial)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// seconds does not overflow: a day is more than any ttl or retry of use.
func seconds(n uint64) time.Duration { return time.Duration(min(n, 24*3600)) * time.Second }
