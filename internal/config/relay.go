package config

import "time"

// Relay is relayd's relay.toml. Paths are absolute after loading. The sample file, relay.toml
// beside this source, explains each key.
type Relay struct {
	StateDir  string       `toml:"state_dir"`
	Appliance ApplianceRef `toml:"appliance"`
	Links     []Link       `toml:"link"`
	Accept    []uint64     `toml:"accept"` // services, each 16 or more
	Floor     uint8        `toml:"floor"`  // least level to act on, 1 to 4
	Strict    bool         `toml:"strict"` // verify the client's countersignature as well
	Display   string       `toml:"display"`
	Order     Order        `toml:"order"`
	Hook      Hook         `toml:"hook"`
	Ops       Ops          `toml:"ops"`
	Log       Log          `toml:"log"`
}

// ApplianceRef is the address and the CA of a relay's appliance.
type ApplianceRef struct {
	URL string `toml:"url"` // https, without path
	CA  string `toml:"ca"`  // PEM file that the server's certificate must chain to
}

// Link is one near-field listener.
type Link struct {
	Type   string  `toml:"type"` // wire
	Listen Address `toml:"listen"`
	Class  string  `toml:"class"` // told to the appliance; "" is the type
}

// The sources of an order.
const (
	OrderAccept = "accept" // none: service and amount come from the decision, if accepted
	OrderStatic = "static" // the same order, from the file, for each transaction
	OrderSocket = "socket" // a local program hands in one order per transaction
)

// Order is the source of a relay's orders.
type Order struct {
	Source string `toml:"source"` // accept, static or socket
	Socket string `toml:"socket"` // path of the Unix socket, made with mode 0600
	// ApprovalWait is for a second approver, 10 s to 1 h.
	ApprovalWait Duration    `toml:"approval_wait"`
	Static       StaticOrder `toml:"static"`
}

// StaticOrder is an order written in the file. Currency "" means no amount.
type StaticOrder struct {
	Service     uint64 `toml:"service"`
	AmountMinor uint64 `toml:"amount_minor"` // in minor units, below 10^15
	Currency    string `toml:"currency"`     // three of A–Z
	Text        string `toml:"text"`         // at most 44 bytes, shown to the user
	Reference   string `toml:"reference"`    // at most 64 bytes, for the operator's books
}

// Hook is the command that acts on an approval.
type Hook struct {
	Command []string `toml:"command"` // empty is none
	Timeout Duration `toml:"timeout"` // 100 ms to 10 minutes
	// Environment names variables of relayd that the command gets.
	Environment []string `toml:"environment"`
}

// DefaultRelay returns the defaults, with paths still relative. The appliance's
// URL, its CA and at least one link have none and must be given.
func DefaultRelay() Relay {
	return Relay{
		StateDir: "var",
		Floor:    1,
		Display:  "-",
		Order:    Order{Source: OrderAccept, ApprovalWait: Duration{5 * time.Minute}},
		Hook:     Hook{Timeout: Duration{10 * time.Second}},
		Log:      Log{Level: "info", Format: "json"},
	}
}

// LoadRelay reads a file over the defaults and validates it. Relative paths are
// relative to the file's directory. Errors are [*Error].
func LoadRelay(path string) (*Relay, error) {
	r := DefaultRelay()
	if err := load(path, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Validate reports everything wrong with a configuration made in memory, as an
// [*Error]. LoadRelay has done so already.
func (r *Relay) Validate() error { return validate(r) }

func (r *Relay) resolve(dir string) {
	for _, path := range []*string{&r.StateDir, &r.Appliance.CA, &r.Order.Socket} {
		*path = under(dir, *path)
	}
	if r.Display != "-" {
		r.Display = under(dir, r.Display)
	}
	if len(r.Hook.Command) > 0 {
		r.Hook.Command[0] = command(dir, r.Hook.Command[0])
	}
	for i := range r.Links {
		l := &r.Links[i]
		l.Listen = l.Listen.under(dir)
		if l.Class == "" {
			l.Class = l.Type
		}
	}
}

func (r *Relay) check() []Problem {
	var c checks
	c.filled("state_dir", r.StateDir)
	c.origin("appliance.url", r.Appliance.URL)
	c.filled("appliance.ca", r.Appliance.CA)
	c.links(r.Links)
	c.services("accept", r.Accept)
	c.number("floor", int(r.Floor), span[int]{1, 4})
	c.order(*r)
	c.hook(r.Hook)
	if r.Ops.Listen != "" {
		c.loopback("ops.listen", r.Ops.Listen)
	}
	c.log(r.Log)
	return c.problems
}
