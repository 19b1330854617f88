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

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/relay/link"
)

// Orders says what phones are asked to approve. Exactly one field is set.
type Orders struct {
	Accept []protocol.Service // services without an order: service and amount come from the decision
	Static *deviceapi.Order   // the same order for every phone
	Socket string             // path of the Unix socket on which local programs place orders
}

// standing returns the authorization to copy for each M1; nil if programs place the orders.
func (o Orders) standing() (*authorization, error) {
	switch {
	case o.Socket != "":
		return nil, nil
	case o.Static != nil:
		return &authorization{order: *o.Static, isExact: true}, nil
	case len(o.Accept) != 0:
		return &authorization{order: deviceapi.Order{Services: o.Accept}}, nil
	}
	return nil, errors.New("relay: no orders")
}

// withServices returns the order for the appliance. A status and a dry run are always possible.
func withServices(o deviceapi.Order, hasPending bool) deviceapi.Order {
	o.Services = append(slices.Clone(o.Services), protocol.ServiceDryRun, protocol.ServiceStatus)
	if hasPending {
		o.Services = append(o.Services, protocol.ServiceCoApproval)
	}
	return o
}

// orderJSON is an order as a local program writes it on the order socket, in one line:
//
//	{"service": 200, "amount": 1250, "currency": "EUR", "text": "2 coffees", "reference": "T-17"}
//
// "services": [200, 300] may replace "service". Only the service is required. The next M1 gets
// the oldest order that no phone has taken up.
type orderJSON struct {
	Service   *protocol.Service  `json:"service"`
	Services  []protocol.Service `json:"services"`
	Amount    *uint64            `json:"amount"` // minor units
	Currency  string             `json:"currency"`
	Text      string             `json:"text"`
	Reference string             `json:"reference"`
}

// resultJSON is the relay's answer, one line, once the order is settled; the next line on the
// same connection is the next order. "result" is approved, denied, expired, refused, failed or
// invalid. Only "approved" with "performed": true means that the device has acted. Lines with
// "pending" may precede it: the order waits for a second approver.
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

// Limits of the order socket.
const (
	maxOrderConns = 16
	maxOrderLine  = 4096 // bytes
)

// orderSocket takes orders from local programs on a Unix socket of mode 0600.
type orderSocket struct {
	relay    *Relay
	listener net.Listener
	wait     time.Duration // for a phone to take up an order
}

func newOrderSocket(r *Relay) (*orderSocket, error) {
	listener, err := link.ListenPrivate(r.config.Orders.Socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOrderSocket, err)
	}
	return &orderSocket{relay: r, listener: listener, wait: r.config.OrderWait}, nil
}

func (s *orderSocket) close() error {
	if err := s.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *orderSocket) run(ctx context.Context) {
	log := s.relay.log.Named("orders")
	stop := context.AfterFunc(ctx, func() { _ = s.close() })
	defer stop()
	slots := make(chan struct{}, maxOrderConns)
	var programs sync.WaitGroup
	defer programs.Wait()
	for ctx.Err() == nil {
		conn, err := s.listener.Accept()
		if err != nil {
			if ctx.Err() == nil {
				log.Warn("accepting a connection failed", "error", err)
				pause(ctx, 100*time.Millisecond)
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			programs.Go(func() {
				defer func() { <-slots }()
				s.serve(ctx, conn)
			})
		default:
			log.Warn("too many connections", "limit", maxOrderConns)
			_ = conn.Close()
		}
	}
}

// serve handles the orders of one connection, one after the other.
func (s *orderSocket) serve(ctx context.Context, conn net.Conn) {
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
			if s.answer(ctx, conn, line) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// answer handles one order to its end. If the program disconnects, no other phone gets the
// order; a phone that has it keeps it.
func (s *orderSocket) answer(ctx context.Context, conn io.Writer, line []byte) error {
	o, err := parseOrder(line)
	if err != nil {
		return writeResult(conn, resultJSON{Result: "invalid", Code: protocol.CodeFormat, Error: err.Error()})
	}
	// Room for one pending result and the final one.
	a := &authorization{order: o, isExact: true, progress: progress{isOnce: true}, results: make(chan result, 2)}
	s.relay.place(a)
	defer s.relay.remove(a)
	timer := time.NewTimer(s.wait)
	defer timer.Stop()
	for {
		select {
		case res := <-a.results:
			err := writeResult(conn, resultOf(o, res))
			if res.isFinal() {
				return err
			}
			if err != nil {
				s.relay.step(nil, a, event{kind: abandoned})
				return err
			}
		case <-timer.C:
			s.relay.step(nil, a, event{kind: withdrawn})
			timer.Reset(s.wait) // a phone that has the order may return it
		case <-ctx.Done():
			s.relay.step(nil, a, event{kind: abandoned})
			return ctx.Err()
		}
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

// checkOrder returns an error for an order that the appliance would refuse.
func checkOrder(o deviceapi.Order) error {
	for _, s := range o.Services {
		if s < protocol.FirstService {
			return fmt.Errorf("order: service %v: want %v or more", s, protocol.FirstService)
		}
	}
	if len(o.Services) == 0 {
		return errors.New("order: service missing")
	}
	// The appliance can read an order that marshals and parses again.
	sent := deviceapi.ApplyRequest{M1: []byte{0}, Order: withServices(o, true), Link: deviceapi.LinkWire}
	if _, err := deviceapi.ParseApplyRequest(sent.Marshal()); err != nil {
		return fmt.Errorf("order: %w", err)
	}
	return nil
}

func resultOf(o deviceapi.Order, s result) resultJSON {
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
