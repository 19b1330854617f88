package authorize

import (
	"encoding/binary"
	"testing"

	"countersign/protocol"
)

// TestRefusalsAreBounded checks that a bounded number of clients is counted, and that the refusals of
// others are counted in one place and not recorded.
func TestRefusalsAreBounded(t *testing.T) {
	var r refusals
	add := func(client, serial uint32) bool {
		var id protocol.ClientID
		binary.BigEndian.PutUint32(id[:], client)
		return r.add(id, refusal{protocol.NewSerial(serial, [8]byte{1}), protocol.CodeLocked})
	}
	for client := range uint32(refusedClients + 100) {
		if first := add(client, 1); first != (client < refusedClients) {
			t.Fatalf("the first refusal of client %d is recorded: %v", client, first)
		}
	}
	if len(r.clients) != refusedClients {
		t.Errorf("%d clients are counted", len(r.clients))
	}
	if add(0, 1) || add(refusedClients+1, 1) {
		t.Error("a repeat is recorded")
	}
	for serial := range uint32(1000) {
		add(0, serial)
	}
	if n := len(r.clients[protocol.ClientID{}]); n != refusedSerials+1 {
		t.Errorf("%d counts of one client", n)
	}
	taken, others := r.take()
	if len(taken) != 1 || len(r.clients) != 1 {
		t.Errorf("%d clients have counts, %d are still counted", len(taken), len(r.clients))
	}
	if len(others) != 1 || others[refusal{code: protocol.CodeLocked}] != 101 {
		t.Errorf("others: %v, want 101 refusals of one code", others)
	}
	if taken, others := r.take(); len(taken) != 0 || len(r.clients) != 0 || len(others) != 0 {
		t.Errorf("after a quiet minute %d clients have counts, %d are still counted", len(taken), len(r.clients))
	}
}
