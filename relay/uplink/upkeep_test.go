package uplink

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
)

// TestTaskWaits checks that a task that fails is repeated less and less often, and not before the time
// that the appliance names.
func TestTaskWaits(t *testing.T) {
	c := &Client{config: Config{Log: hclog.NewNullLogger()}}
	var err error
	renewal := task{name: "renewing certificate", do: func(context.Context) error { return err }}
	waits := func(want time.Duration) {
		t.Helper()
		before := time.Now()
		renewal.run(t.Context(), c, before.Add(firstPause))
		if got := renewal.next.Sub(before); got < want || got > want+time.Minute {
			t.Errorf("after %v it waits for %s, want %s", err, got, want)
		}
	}
	err = &StatusError{Status: 429, Code: protocol.CodeBusy, Retry: 200 * time.Second}
	waits(200 * time.Second)
	waits(200 * time.Second)
	err = errors.New("no connection")
	waits(8 * time.Second)
	for range 10 {
		renewal.run(t.Context(), c, time.Now())
	}
	err = &StatusError{Status: 429, Code: protocol.CodeBusy, Retry: 200 * time.Second}
	waits(lastPause)
	err = nil
	waits(firstPause)
	if renewal.pause != 0 {
		t.Errorf("after a success the next failure waits for %s", renewal.pause)
	}
}
