package store

import (
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/receipt"
)

// BenchmarkSeals measures the CPU time that seals cost one authorization at level 1: it verifies
// client, restraint and device twice and the head once, and makes the seals of restraint and
// decision.
func BenchmarkSeals(b *testing.B) {
	s := testSeals(nil)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	client := Client{Name: "alice", Roles: []string{"uv"}, Verifier: make([]byte, 40), Cert: make([]byte, 180), CreatedAt: at, Status: Active, Version: 1}
	client.SigningKey[0] = 2
	restraint := Restraint{Highest: 7, Sums: []Sum{{Service: 200, Period: 86400, Currency: "EUR", Buckets: []Bucket{{Number: 1, Amount: 100, Count: 2}}}}}
	device := Device{Name: "gate", SPIFFEID: "spiffe://bank.example/device/gate", Display: "Gate", Floor: 1, Status: Active, Version: 1, CreatedAt: at}
	head := HeadRecord{Name: "head", Body: make([]byte, 250)}
	decision := Kept{Spent: Spent{Outcome: Outcome{Result: 1, At: at, Decision: receipt.Decision{
		Level: 1, Factors: protocol.FactorSignature, IssuedAt: 1, Lifetime: 60, Service: 100,
	}}}}
	seals := map[Sealed]Seal{}
	checked := []Sealed{&client, &restraint, &device, &client, &restraint, &device, &head}
	for _, r := range checked {
		seal, err := s.Make(r)
		if err != nil {
			b.Fatal(err)
		}
		seals[r] = seal
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, r := range checked {
			if err := s.Check(r, seals[r]); err != nil {
				b.Fatal(err)
			}
		}
		for _, r := range []Sealed{&restraint, &decision} {
			if _, err := s.Make(r); err != nil {
				b.Fatal(err)
			}
		}
	}
}
