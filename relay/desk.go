package relay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/relay/link"
)

// orderJSON is what a local program writes on the order socket, in one line:
//
//	{"service": 200, "amount": 1250, "currency": "EUR", "text": "2 coffees", "reference": "T-17"}
//
// "services": [200, 300] may stand in place of "service". Only the service is
// required. The order goes to the next M1; orders of several connections are given out in the
// order they came in.
type orderJSON struct {
	Service   *protocol.Service  `json:"service"`
	Services  []protocol.Service `json:"services"`
	Amount    *uint64            `json:"amount"` // minor units
	Currency  string             `json:"currency"`
	Text      string             `json:"text"`
	Reference string             `json:"reference"`
}

// resultJSON is the line that comes back when the order is settled; the next line
// on the same connection is the next order. "result" is approved, denied, expired,
// refused, failed or invalid; only "approved" with "performed": true is one. Before it
// there may be lines with "pending": a second approver is waited for.
type resultJSON struct {
	Result      string           `json:"result"`
	Code        protocol.Code    `json:"code,omitempty"`
	Transaction string           `json:"transaction,omitempty"`
	Service     protocol.Service `json:"service,omitempty"`
	Amount      *ActAmount       `json:"amount,omitempty"`
	Level       protocol.Level   `json:"level,omitempty"`
	Performed   bool             `json:"performed"`
	Error       string           `json:"error,omitempty"`
	Reference   string           `json:"reference,omitempty"`
}

// The bounds of the order socket.
const (
	maxTills     = 16   // connections
	maxOrderLine = 4096 // bytes
)

// desk takes orders from local programs on a Unix socket of mode 0600.
type desk struct {
	listener net.Listener
	log      hclog.Logger
	wait     time.Duration

	mu      sync.Mutex // guards what follows
	waiting []*order
}

// order is one that was handed in; it settles once.
type order struct {
	deviceapi.Order
	settled chan Settlement // of capacity 1
	pending chan Settlement // of capacity 1
	isGone  bool            // nobody waits for it any more; guarded by the desk's mu
	ticket  *ticket         // nil until it is first given out; guarded by the desk's mu
}

func newDesk(c Config) (*desk, error) {
	path := c.Orders.Socket
	listener, err := link.ListenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("order socket: %w", err)
	}
	return &desk{listener: listener, log: c.Log.Named("orders"), wait: c.OrderWait}, nil
}

func (d *desk) close() error {
	if err := d.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// take gives the order that waits longest; CodeLinkBusy if none does.
func (d *desk) take() (*ticket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waiting) == 0 {
		return nil, protocol.Retry{Code: protocol.CodeLinkBusy, After: busyPause}
	}
	o := d.waiting[0]
	d.waiting = slices.Delete(d.waiting, 0, 1)
	if o.ticket == nil {
		o.ticket = &ticket{
			order: o.Order, isExact: true, isOnce: true, settle: o.settle,
			putBack: func() { d.insert(0, o) }, isGone: func() bool { return d.isGone(o) },
		}
	}
	return o.ticket, nil
}

func (d *desk) isGone(o *order) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return o.isGone
}

func (d *desk) insert(at int, o *order) {
	d.mu.Lock()
	defer d.mu.Unlock()
	isClaimed := o.ticket != nil && o.ticket.claimed.Load()
	if !o.isGone && !isClaimed {
		d.waiting = slices.Insert(d.waiting, min(at, len(d.waiting)), o)
	}
}

// withdraw takes an order back that no phone has taken up; false if one has.
func (d *desk) withdraw(o *order) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.withdrawLocked(o)
}

func (d *desk) withdrawLocked(o *order) bool {
	i := slices.Index(d.waiting, o)
	if i >= 0 {
		d.waiting = slices.Delete(d.waiting, i, i+1)
	}
	return i >= 0
}

// abandon says that nobody waits for an order. A session that has it keeps it, but
// no other gets it.
func (d *desk) abandon(o *order) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.withdrawLocked(o)
	o.isGone = true
}

func (o *order) settle(s Settlement) {
	to := o.settled
	if !s.isFinal() {
		to = o.pending
	}
	select {
	case to <- s:
	default:
	}
}

func (d *desk) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = d.close() })
	defer stop()
	slots := make(chan struct{}, maxTills)
	var tills sync.WaitGroup
	defer tills.Wait()
	for ctx.Err() == nil {
		conn, err := d.listener.Accept()
		if err != nil {
			if ctx.Err() == nil {
				d.log.Warn("accepting a connection failed", "error", err)
				pause(ctx, 100*time.Millisecond)
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			tills.Go(func() {
				defer func() { <-slots }()
				d.serve(ctx, conn)
			})
		default:
			d.log.Warn("too many connections", "limit", maxTills)
			_ = conn.Close()
		}
	}
}

// serve takes one order after the other from a connection.
func (d *desk) serve(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	lines := make(chan []byte)
	go func() { // ends with the connection
		defer cancel()
		in := bufio.NewScanner(conn)
		in.Buffer(nil, maxOrderLine)
		for in.Scan() {
			select {
			case lines <- bytes.Clone(in.Bytes()):
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case line := <-lines:
			if d.answer(ctx, conn, line) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// answer handles one order to its end. A program that goes away takes back what no
// phone has taken up.
func (d *desk) answer(ctx context.Context, conn io.Writer, line []byte) error {
	o, err := parseOrder(line)
	if err != nil {
		return writeResult(conn, resultJSON{Result: "invalid", Code: protocol.CodeFormat, Error: err.Error()})
	}
	placed := &order{Order: o, settled: make(chan Settlement, 1), pending: make(chan Settlement, 1)}
	d.insert(maxTills, placed)
	timer := time.NewTimer(d.wait)
	defer timer.Stop()
	for {
		select {
		case s := <-placed.settled:
			return errors.Join(placed.writePending(conn), writeResult(conn, resultOf(o, s)))
		case s := <-placed.pending:
			if err := writeResult(conn, resultOf(o, s)); err != nil {
				d.abandon(placed)
				return err
			}
		case <-timer.C:
			if d.withdraw(placed) {
				placed.settle(Settlement{Result: ResultExpired, Code: protocol.CodeExpired})
			} else {
				timer.Reset(d.wait) // it may be put back
			}
		case <-ctx.Done():
			d.abandon(placed)
			return ctx.Err()
		}
	}
}

// writePending writes what came before the settlement and is not written yet.
func (o *order) writePending(conn io.Writer) error {
	select {
	case s := <-o.pending:
		return writeResult(conn, resultOf(o.Order, s))
	default:
		return nil
	}
}

func parseOrder(line []byte) (deviceapi.Order, error) {
	var w orderJSON
	in := json.NewDecoder(bytes.NewReader(line))
	in.DisallowUnknownFields()
	if err := in.Decode(&w); err != nil {
		return deviceapi.Order{}, fmt.Errorf("order: %w", err)
	}
	if in.More() {
		return deviceapi.Order{}, errors.New("order: more than one object in a line")
	}
	o := deviceapi.Order{Services: w.Services, Text: w.Text, Reference: w.Reference}
	if w.Service != nil {
		o.Services = append(o.Services, *w.Service)
	}
	if (w.Amount == nil) != (w.Currency == "") {
		return o, errors.New("order: amount and currency go together")
	}
	if w.Amount != nil {
		o.Amount = &protocol.Amount{Minor: *w.Amount, Currency: w.Currency}
	}
	return o, checkOrder(o)
}

// checkOrder finds what the appliance would refuse.
func checkOrder(o deviceapi.Order) error {
	for _, s := range o.Services {
		if s < protocol.FirstService {
			return fmt.Errorf("order: service %v: want %v or more", s, protocol.FirstService)
		}
	}
	if len(o.Services) == 0 {
		return errors.New("order: service missing")
	}
	// What marshals and parses again is what the other side can read.
	sent := deviceapi.ApplyRequest{M1: []byte{0}, Order: wired(o, true), Link: deviceapi.LinkWire}
	if _, err := deviceapi.ParseApplyRequest(sent.Marshal()); err != nil {
		return fmt.Errorf("order: %w", err)
	}
	return nil
}

func resultOf(o deviceapi.Order, s Settlement) resultJSON {
	w := resultJSON{Result: s.Result, Code: s.Code, Performed: s.Performed, Reference: o.Reference}
	if d := s.Decision; d != nil {
		w.Transaction, w.Service, w.Level, w.Amount = d.Transaction.String(), d.Service, d.Level, amountJSON(d.Amount)
	}
	return w
}

func writeResult(w io.Writer, r resultJSON) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}
