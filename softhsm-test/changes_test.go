package softhsmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"countersign/appliance/adminapi"
	"countersign/softhsm-test/rig"
)

// TestKilledChanges: an appliance that is killed while it makes a change makes it once:
// before it was taken not at all, and afterwards when it starts again.
func TestKilledChanges(t *testing.T) {
	b := newBench(t)
	interrupted := 0
	for round, at := range []int{1, 2, 2, 2, 3, 2} {
		verb := []string{"rotate", "activate"}[round%2]
		before := len(must[[]adminapi.Record](t)(b.Records(t.Context())))
		args := []string{"--admin", b.Admin, "key", verb, "root"}
		if verb == "activate" {
			args = append(args, "--yes")
		}
		asking := must[*rig.Daemon](t)(programs.Start(rig.Call{Program: "countersignctl", Args: args}))
		b.killAt(before + at)
		if _, err := asking.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := b.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := b.ended()
		// What was not taken is asked for again: the same request, if it is still open.
		if c.State == "open" {
			r := must[rig.Result](t)(b.Ctl(t.Context(), args[2:]...))
			if c = b.ended(); r.Code != 0 {
				t.Fatalf("round %d: exit code %d: %s", round, r.Code, r.Stderr)
			}
		}
		if c.State != "executed" {
			t.Fatalf("round %d: %s %s is %s: %s", round, c.Kind, verb, c.State, c.Reason)
		}
		events := map[string]int{}
		for _, rec := range must[[]adminapi.Record](t)(b.Records(t.Context()))[before:] {
			events[rec.Kind+" "+fmt.Sprint(rec.Fields["event"])]++
		}
		if events["change taken"] != 1 || events["change executed"] != 1 || events["key "+verb] != 1 {
			t.Fatalf("round %d: %v", round, events)
		}
		if b.resumed() {
			interrupted++
		}
	}
	t.Logf("%d of 6 changes were interrupted between taken and executed", interrupted)
	if interrupted == 0 {
		t.Error("no change was interrupted: the kills fall at the wrong time")
	}
}

// killAt kills the appliance as soon as so many audit records are there, and waits until
// its children are gone.
func (b *bench) killAt(records int) {
	b.Helper()
	children := must[[]rig.Process](b.T)(b.Children())
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", b.Admin[len("unix:"):])
	}}}
	defer client.CloseIdleConnections()
	err := rig.Until(b.Context(), fmt.Sprintf("audit record %d", records), func() (bool, error) {
		res, err := client.Get(fmt.Sprintf("http://appliance/v1/admin/audit?after=%d", records-1))
		if err != nil {
			return false, err
		}
		defer func() { _ = res.Body.Close() }() // it was read
		var page []adminapi.Record
		err = json.NewDecoder(res.Body).Decode(&page)
		return len(page) > 0, err
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := b.Kill(); err != nil {
		b.Fatal(err)
	}
	for _, c := range children {
		if err := c.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// ended is the newest change once it is not under way any more.
func (b *bench) ended() (c adminapi.Change) {
	b.Helper()
	err := rig.Until(b.Context(), "the end of the change", func() (bool, error) {
		r, err := b.Ctl(b.Context(), "change", "list", "-o", "json")
		if err != nil {
			return false, err
		}
		var all []adminapi.Change
		if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil || len(all) == 0 {
			return false, fmt.Errorf("%d changes: %v: %s", len(all), err, r.Stderr)
		}
		c = all[0]
		return c.State != "taken", nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// resumed tells whether the appliance found a change that was taken and not ended.
func (b *bench) resumed() bool {
	return strings.Contains(b.Appliance.Log(), "change was interrupted and is made now")
}
