package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"countersign/internal/fault"
)

// TestExits: the table of errors shows the words of each error, and an error that has a row keeps it.
func TestExits(t *testing.T) {
	for _, exit := range exits {
		if !strings.Contains(exit.Err.Error(), exit.Row.Text) {
			t.Errorf("the row %q describes the error %q", exit.Row.Text, exit.Err)
		}
		var got *fault.Error
		if err := explain(fmt.Errorf("doing: %w", exit.Err)); !errors.As(err, &got) || got.Hint() == "" {
			t.Errorf("%v has no hint", err)
		}
	}
	kept := fault.BadRecipient.Of(exits[0].Err)
	if err := explain(kept); !errors.Is(err, kept) || err.(*fault.Error).Advice != fault.BadRecipient.Advice {
		t.Errorf("%v lost its row", err)
	}
	if explain(nil) != nil {
		t.Error("no error became one")
	}
}
