package world_test

import (
	"testing"

	"countersign/softhsm-test/hostile/world"
)

// TestBuild: a copy of the world opens, and its people go on.
func TestBuild(t *testing.T) {
	dir := t.TempDir()
	w, err := world.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	h, err := world.Open(t.Context(), w.Place(w.Template))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close() }()
	alice := *w.Phones["alice"]
	d, err := h.Apply(t.Context(), &alice, world.Ask{Service: world.Door})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Approve(t.Context(), d); err != nil || d.Answer.Decision() == nil {
		t.Errorf("%+v: %v", d.Answer.P4, err)
	}
	if h.Alarms() != 0 {
		t.Error("an alarm")
	}
}
