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

// Receipt is what became of one countersignature.
type Receipt struct {
	// The statement that was signed, and what it says.
	Statement  message.Statement
	Serial     protocol.Serial
	Service    protocol.Service
	Level      protocol.Level
	Device     protocol.DeviceHandle
	DeviceName string
	Amount     *protocol.Amount
	Text       string
	Verdict    protocol.Verdict // the user's
	// Approves is the service of the other client whose request this one approves,
	// with protocol.ServiceCoApproval.
	Approves *protocol.Service

	// Known is false where no authentic answer came: the operation may have been
	// carried out or not, and Result says nothing.
	Known  bool
	Result protocol.Result
	Reason protocol.Code
	Retry  time.Duration // with CodeLocked; 0: not said
	// TriesLeft is how many more passwords may be tried; nil: not said.
	TriesLeft *uint64

	// Decision is the full receipt, or nil. Verified says that when it came its
	// signature chained to the pinned root by KeyCert, and that it is on this statement.
	Decision []byte
	Verified bool
	KeyCert  []byte

	At time.Time
}

// Approved says whether the operation was approved.
func (r Receipt) Approved() bool { return r.Known && r.Result == protocol.ResultApproved }

// Final says whether the outcome is known and will not change.
func (r Receipt) Final() bool {
	return r.Known && (r.Result == protocol.ResultApproved || r.Result == protocol.ResultDenied)
}

// receiptJSON is a receipt's file, receipts/<serial>.json. What the statement says
// is not repeated.
type receiptJSON struct {
	Statement protocol.Base64  `json:"statement"`
	Verdict   protocol.Verdict `json:"verdict"`
	Known     bool             `json:"known"`
	Result    protocol.Result  `json:"result"`
	Reason    protocol.Code    `json:"reason"`
	Retry     uint64           `json:"retry_s,omitempty"`
	TriesLeft *uint64          `json:"tries_left,omitempty"`
	Decision  protocol.Base64  `json:"decision,omitempty"`
	Verified  bool             `json:"verified,omitempty"`
	KeyCert   protocol.Base64  `json:"key_cert,omitempty"` // that the decision was verified with
	At        time.Time        `json:"at"`
}

const receiptDir = "receipts"

func receiptFile(serial protocol.Serial) string {
	return path.Join(receiptDir, serial.String()+".json")
}

// newReceipt is one of unknown outcome.
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

// stamp is how the time of a receipt is kept.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func (c *Client) storeReceipt(r Receipt) error {
	b, err := json.MarshalIndent(receiptJSON{
		Statement: protocol.Base64(r.Statement), Verdict: r.Verdict, Known: r.Known, Result: r.Result, Reason: r.Reason,
		Retry: uint64(r.Retry / time.Second), TriesLeft: r.TriesLeft, Decision: r.Decision, Verified: r.Verified,
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
	r, err := newReceipt(message.Statement(w.Statement), w.Verdict, w.At)
	if err != nil || r.Serial != serial {
		return Receipt{}, fmt.Errorf("receipt %v is not of this serial: %w", serial, ErrState)
	}
	r.Known, r.Result, r.Reason, r.Retry = w.Known, w.Result, w.Reason, seconds(w.Retry)
	r.TriesLeft, r.Decision, r.Verified, r.KeyCert = w.TriesLeft, w.Decision, w.Verified, w.KeyCert
	return r, nil
}

// Receipt gives the receipt of one serial, be it of a session that has come to no
// end: [ErrNoReceipt] if there is none.
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

// VerifyReceipt verifies the full receipt of a serial anew, offline: its signature
// against the pinned root, and that it says what was countersigned. Errors are
// [ErrNotEnrolled], [ErrNoReceipt] where there is no full receipt, and [ErrReceipt].
func (c *Client) VerifyReceipt(serial protocol.Serial) (Receipt, error) {
	if c.state.Enrolment == nil {
		return Receipt{}, ErrNotEnrolled
	}
	r, err := c.Receipt(serial)
	if err != nil {
		return r, err
	}
	if r.Decision == nil {
		return r, fmt.Errorf("%v is no full receipt: %w", serial, ErrNoReceipt)
	}
	if _, err := c.checkDecision(r); err != nil {
		return r, fmt.Errorf("%v: %w: %w", serial, ErrReceipt, err)
	}
	return r, nil
}

func (c *Client) verifies(r Receipt) bool {
	_, err := c.checkDecision(r)
	return err == nil
}

// checkDecision gives the key certificate by which the decision verifies. A key
// that has served its time is judged by when the receipt came; one that the root has
// ruled out since proves nothing.
func (c *Client) checkDecision(r Receipt) (cert []byte, err error) {
	pinned, now := c.trustNow()
	certs := pinned.KeyCerts(trust.UseDecision)
	if r.KeyCert != nil {
		certs = append(certs, r.KeyCert)
	}
	newest, _ := pinned.Key(trust.UseDecision)
	err = fmt.Errorf("no key of decision is known: %w", protocol.CodeCertificate)
	for _, cert := range certs {
		key, bad := trust.VerifyKeyCert(cert, pinned.Root)
		switch {
		case bad != nil:
			err = bad
			continue
		case newest.MinEpoch != nil && key.Epoch < *newest.MinEpoch:
			err = fmt.Errorf("key of epoch %d is ruled out: %w", key.Epoch, protocol.CodeCertificate)
			continue
		}
		keys := trust.Keyring{Root: pinned.Root, KeyCerts: [][]byte{cert}, Now: min(now, max(key.NotBefore, unix(r.At)))}
		var d receipt.Decision
		if d, err = receipt.Verify(keys, r.Decision); err == nil {
			return cert, r.fits(d)
		}
	}
	return nil, err
}

// fits says whether a decision is on what was countersigned: CodePolicy if not.
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
		return fmt.Errorf("decision says something else than what was countersigned: %w", protocol.CodePolicy)
	}
	return nil
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
