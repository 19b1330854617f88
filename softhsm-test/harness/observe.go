package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"countersign/appliance/adminapi"
)

// Ctl runs countersignctl on the appliance's admin socket.
func (a *Appliance) Ctl(ctx context.Context, args ...string) (Result, error) {
	return a.Config.Bin.Run(ctx, Call{Program: "countersignctl", Args: append([]string{"--admin", a.Admin}, args...)})
}

// MustCtl is Ctl for a command that must end with exit code 0. It calls [Do].
func (a *Appliance) MustCtl(ctx context.Context, args ...string) Result {
	r := Must(a.Ctl(ctx, args...))
	if r.Code != 0 {
		Do(&Exit{Command: "countersignctl " + strings.Join(args, " "), Code: r.Code, Stderr: r.Stderr})
	}
	return r
}

// Phone runs countersign-client, whose state is in a directory. It calls [Do].
func (a *Appliance) Phone(ctx context.Context, state string, args ...string) Result {
	return Must(a.Config.Bin.Run(ctx, Call{Program: "countersign-client", Args: append([]string{"--state", state}, args...)}))
}

// Exit is a command that ended with another exit code than 0.
type Exit struct {
	Command, Stderr string
	Code            int
}

func (e *Exit) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", e.Command, e.Code, e.Stderr)
}

// ask runs countersignctl with -o json, which must end with exit code 0.
func (a *Appliance) ask(ctx context.Context, into any, args ...string) error {
	r, err := a.Ctl(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return &Exit{Command: "countersignctl " + strings.Join(args, " "), Code: r.Code, Stderr: r.Stderr}
	}
	return json.Unmarshal([]byte(r.Stdout), into)
}

// Status returns the output of `countersignctl status`.
func (a *Appliance) Status(ctx context.Context) (s adminapi.Status, err error) {
	err = a.ask(ctx, &s, "status")
	return s, err
}

// pageSize is how many audit records are asked for at once.
const pageSize = 1000

// Records are the audit records, the oldest first.
func (a *Appliance) Records(ctx context.Context) (records []adminapi.Record, err error) {
	for {
		var page []adminapi.Record
		after := "0"
		if len(records) != 0 {
			after = strconv.FormatUint(records[len(records)-1].Sequence, 10)
		}
		if err = a.ask(ctx, &page, "audit", "tail", "--after", after, "--limit", strconv.Itoa(pageSize)); err != nil {
			return nil, err
		}
		if records = append(records, page...); len(page) < pageSize {
			return records, nil
		}
	}
}

// Client returns the output of `countersignctl client show`.
func (a *Appliance) Client(ctx context.Context, name string) (c adminapi.Client, err error) {
	err = a.ask(ctx, &c, "client", "show", name)
	return c, err
}

// Invite makes an activation code for a new client or device (noun) of this name,
// which has these roles.
func (a *Appliance) Invite(ctx context.Context, noun, name string, roles ...string) (code string, err error) {
	args := []string{noun, "invite", name}
	for _, role := range roles {
		args = append(args, "--role", role)
	}
	var invited adminapi.Invited
	err = a.ask(ctx, &invited, args...)
	return invited.ActivationCode, err
}

// Act is a line of the hook log: what a relay told its hook.
type Act struct {
	Transaction string   `json:"transaction"`
	Service     uint64   `json:"service"`
	Amount      *Amount  `json:"amount"`
	Level       uint8    `json:"level"`
	Factors     []string `json:"factors"`
	Device      string   `json:"device"`
	Pairwise    string   `json:"pairwise"`
}

// Amount is money in minor units.
type Amount struct {
	Minor    uint64 `json:"minor"`
	Currency string `json:"currency"`
}

// Acts reads the hook log of the appliance's relay.
func (a *Appliance) Acts() ([]Act, error) { return ReadActs(a.Hooklog) }

// ReadActs reads a hook log: one JSON object a line.
func ReadActs(path string) ([]Act, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the hook log: %w", err)
	}
	var acts []Act
	for line := range strings.Lines(string(raw)) {
		var act Act
		if err := json.Unmarshal([]byte(line), &act); err != nil {
			return nil, fmt.Errorf("hook log, line %d: %w", len(acts)+1, err)
		}
		acts = append(acts, act)
	}
	return acts, nil
}

// Tally is what can be counted from outside.
type Tally struct {
	Clients, Devices, Decisions uint64
	Audited                     uint64 // audit records of decisions
	Refused                     uint64 // audit records of good countersignatures that spent nothing
	Acts                        uint64 // lines of the hook log
}

// Tally counts.
func (a *Appliance) Tally(ctx context.Context) (t Tally, err error) {
	status, err := a.Status(ctx)
	if err != nil {
		return t, err
	}
	records, err := a.Records(ctx)
	if err != nil {
		return t, err
	}
	acts, err := a.Acts()
	if err != nil {
		return t, err
	}
	t = Tally{Clients: status.Counts.Clients, Devices: status.Counts.Devices, Decisions: status.Counts.Decisions, Acts: uint64(len(acts))}
	for _, r := range records {
		switch r.Kind {
		case "decision":
			t.Audited++
		case "refused":
			t.Refused++
		}
	}
	return t, nil
}

// Plus adds.
func (t Tally) Plus(u Tally) Tally {
	return Tally{
		Clients: t.Clients + u.Clients, Devices: t.Devices + u.Devices, Decisions: t.Decisions + u.Decisions,
		Audited: t.Audited + u.Audited, Refused: t.Refused + u.Refused, Acts: t.Acts + u.Acts,
	}
}
