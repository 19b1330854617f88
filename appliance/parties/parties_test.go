package parties_test

import (
	"errors"
	"strings"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/protocol"
)

// TestNames: a name fits SPIFFE IDs, file names and tables, and is no id.
func TestNames(t *testing.T) {
	for name, good := range map[string]bool{
		"alice": true, "POS-1.front_door": true, "0123456789abcde": true, "0123456789abcdefg": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "two words": false, "a/b": false, "é": false, ".": false, "..": false,
		"0123456789abcdef": false, "fedcba9876543210": false,
	} {
		if err := parties.CheckName(name); (err == nil) != good || err != nil && !errors.Is(err, parties.ErrInput) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestSwappedNames: an attacker who swaps names cannot have the wrong client revoked.
func TestSwappedNames(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolPhone("alice")
	b.EnrolPhone("bob")
	b.Tamper(1, `UPDATE client SET name = 'x' WHERE name = 'alice'`)
	b.Tamper(1, `UPDATE client SET name = 'alice' WHERE name = 'bob'`)
	b.Tamper(1, `UPDATE client SET name = 'bob' WHERE name = 'x'`)
	b.Forgeries(func() {
		if _, err := b.Parties.SetClientStatus(t.Context(), "alice", store.Revoked); !errors.Is(err, store.ErrForged) {
			t.Errorf("revoked somebody: %v", err)
		}
	})
}

// TestForgedDevice: an attacker can change neither the name on the phone's display nor the floor,
// and cannot resume a revoked device.
func TestForgedDevice(t *testing.T) {
	for name, statement := range map[string]string{
		"display": `UPDATE device SET display = 'Charity box'`,
		"floor":   `UPDATE device SET floor = 0`,
		"status":  `UPDATE device SET status = 1`,
	} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.New(t)
			if name == "status" {
				if _, err := b.Parties.SetDeviceStatus(t.Context(), "gate", store.Revoked); err != nil {
					t.Fatal(err)
				}
			}
			b.Tamper(1, statement)
			b.Restart()
			b.Forgeries(func() {
				if _, err := b.Parties.Device(t.Context(), b.Gate.SPIFFEID); !errors.Is(err, protocol.CodeDevice) {
					t.Errorf("it is a device: %v", err)
				}
			})
		})
	}
}

// TestForgedRowIsNotBlessed: suspending and resuming gives a forged row no valid seal.
func TestForgedRowIsNotBlessed(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolPhone("alice")
	point := appliancetest.NewSoftKey().Point()
	b.Tamper(1, `UPDATE client SET signing_key = ? WHERE name = 'alice'`, point[:])
	if _, err := b.Parties.SetClientStatus(t.Context(), "alice", store.Suspended); !errors.Is(err, store.ErrForged) {
		t.Errorf("suspending a forged row: %v, want forged", err)
	}
}
