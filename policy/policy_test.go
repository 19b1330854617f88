package policy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
)

func mustParse(t *testing.T, doc string) *Policy {
	t.Helper()
	p, err := Parse([]byte(doc))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return p
}

func eur(minor uint64) *protocol.Amount { return &protocol.Amount{Minor: minor, Currency: "EUR"} }

func TestDefaultLevels(t *testing.T) {
	p := mustParse(t, string(Default()))
	for _, tc := range []struct {
		name string
		r    Request
		want protocol.Level
		err  error
	}{
		{"door", Request{Service: 100}, 1, nil},
		{"door, more requested", Request{Service: 100, Requested: 2}, 2, nil},
		{"door, device floor above request", Request{Service: 100, Requested: 2, DeviceFloor: 3}, 3, nil},
		{"door, four requested", Request{Service: 100, Requested: 4}, 4, nil},
		{"free payment", Request{Service: 200, Amount: eur(0)}, 1, nil},
		{"below the first step", Request{Service: 200, Amount: eur(4999)}, 1, nil},
		{"at the first step", Request{Service: 200, Amount: eur(5000)}, 2, nil},
		{"below the second step", Request{Service: 200, Amount: eur(999999)}, 2, nil},
		{"at the second step", Request{Service: 200, Amount: eur(1000000)}, 4, nil},
		{"largest amount", Request{Service: 200, Amount: eur(protocol.MaxMinor)}, 4, nil},
		{"floors never lower", Request{Service: 200, Amount: eur(1000000), Requested: 1, DeviceFloor: 1}, 4, nil},
		{"vault", Request{Service: 300, Requested: 1}, 3, nil},

		{"unknown service", Request{Service: 101}, 0, ErrServiceUnknown},
		{"dry run", Request{Service: 0, Amount: eur(1)}, 1, nil},
		{"status", Request{Service: 2}, 1, nil},
		{"status at a higher level", Request{Service: 2, Requested: 2}, 2, nil},
		{"second approval is no policy's", Request{Service: 3}, 0, ErrServiceUnknown},
		{"co-approval is no policy's", Request{Service: 3}, 0, ErrServiceUnknown},
		{"largest service", Request{Service: math.MaxUint64}, 0, ErrServiceUnknown},
		{"requested beyond", Request{Service: 100, Requested: 5}, 0, ErrLevelUnavailable},
		{"floor beyond", Request{Service: 100, DeviceFloor: 255}, 0, ErrLevelUnavailable},
		{"payment without amount", Request{Service: 200}, 0, ErrAmountRequired},
		{"payment in dollars", Request{Service: 200, Amount: &protocol.Amount{Minor: 1, Currency: "USD"}}, 0, ErrCurrency},
		{"payment in small letters", Request{Service: 200, Amount: &protocol.Amount{Minor: 1, Currency: "eur"}}, 0, ErrCurrency},
		{"payment without currency", Request{Service: 200, Amount: &protocol.Amount{Minor: 1}}, 0, ErrCurrency},
		{"door with an amount", Request{Service: 100, Amount: eur(0)}, 0, ErrAmountNotAllowed},
		{"beyond the wire", Request{Service: 200, Amount: eur(protocol.MaxMinor + 1)}, 0, ErrAmountTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, err := p.Level(tc.r)
			if !errors.Is(err, tc.err) || g.Level != tc.want {
				t.Fatalf("Level = %d, %v; want %d, %v", g.Level, err, tc.want, tc.err)
			}
			if err != nil && !reflect.DeepEqual(g, Grant{}) {
				t.Errorf("grant beside an error: %+v", g)
			}
			if g.Factors != factorsOf(tc.want) {
				t.Errorf("factors %s, want %s", g.Factors, factorsOf(tc.want))
			}
		})
	}
}

func TestGrantOfDefault(t *testing.T) {
	p := mustParse(t, string(Default()))
	g, err := p.Level(Request{Service: 200, Amount: eur(5000), Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	want := Grant{
		Service: 200, ServiceName: "payment", Level: 2,
		Factors: protocol.FactorSignature | protocol.FactorPassword | protocol.FactorStrict,
		TTL:     90 * time.Second, Lifetime: 120 * time.Second,
		Limits: []Limit{{Window: 24 * time.Hour, Amount: 5000000}},
		Bounds: []Bound{{Window: 24 * time.Hour}}, // level 2 is all that the sum asks for
	}
	if !reflect.DeepEqual(g, want) {
		t.Errorf("got  %+v\nwant %+v", g, want)
	}
	g.Limits[0].Amount = 0
	if again, _ := p.Level(Request{Service: 200, Amount: eur(0)}); again.Limits[0].Amount != 5000000 {
		t.Error("a caller changed the policy through its grant")
	}
	door, err := p.Level(Request{Service: 100})
	if err != nil || door.Limits != nil || door.ServiceName != "door.open" {
		t.Errorf("door: %+v, %v", door, err)
	}
}

func TestDefaultIsACopy(t *testing.T) {
	Default()[0] = 'x'
	if Default()[0] != '#' {
		t.Error("a caller changed the embedded document")
	}
}

func TestHashAndFloors(t *testing.T) {
	p := mustParse(t, string(Default()))
	if p.Hash() != sha256.Sum256(Default()) {
		t.Error("hash is not that of the document's bytes")
	}
	if mustParse(t, string(Default())+"\n").Hash() == p.Hash() {
		t.Error("another document has the same hash")
	}
	want := []protocol.Floor{{Service: 100, MinLevel: 1}, {Service: 200, MinLevel: 1}, {Service: 300, MinLevel: 3}}
	if got := p.Floors(); !reflect.DeepEqual(got, want) {
		t.Errorf("floors %v, want %v", got, want)
	}
}

func TestZeroPolicyDenies(t *testing.T) {
	var p Policy
	if _, err := p.Level(Request{Service: 100}); !errors.Is(err, ErrServiceUnknown) {
		t.Errorf("zero policy: %v", err)
	}
	if p.Floors() != nil {
		t.Error("zero policy has floors")
	}
}

func TestAllKeys(t *testing.T) {
	p := mustParse(t, `
[[service]]
id = 9223372036854775807
name = "tea"
currency = "JPY"
levels = [{ from = "0", level = 2 }, { from = "500", level = 2 }]
ttl = "300s"
lifetime = "1h"
limits = [{ window = "1m", count = 3 }, { window = "168h", amount = "7000", count = 40 }]
`)
	g, err := p.Level(Request{Service: math.MaxInt64, Amount: &protocol.Amount{Minor: 500, Currency: "JPY"}})
	want := Grant{
		Service: math.MaxInt64, ServiceName: "tea", Level: 2, Factors: 3, TTL: 5 * time.Minute, Lifetime: time.Hour,
		Limits: []Limit{{Window: time.Minute, Count: 3}, {Window: 7 * 24 * time.Hour, Count: 40, Amount: 7000}},
	}
	if err != nil || !reflect.DeepEqual(g, want) {
		t.Errorf("got  %+v, %v\nwant %+v", g, err, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[[service]]\nid=16\nname=\"a\"\nlevel=1\n"))
	f.Add([]byte("[[service]]\nid=16\nname=\"a\"\ncurrency=\"EUR\"\nlevels=[{from=\"0\",level=1}]\n"))
	f.Add([]byte("[[service]]\nid=16\nname=\"a\"\ncurrency=\"EUR\"\nlevels=[{from=\"0\",level=1}]\ncumulated=[{window=\"1h\",from=\"1\",level=2}]\n"))
	f.Add([]byte("service=[{id=1}]\n"))
	f.Add([]byte("a.b = \"\"\"\n\"\"\"\n[x]\ny=[\n1]"))
	f.Add([]byte("[[service]]\nlimits=[{window=\"1h\",count=1}]\r\n"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		kept := bytes.Clone(doc)
		p, err := Parse(doc)
		if !bytes.Equal(doc, kept) {
			t.Fatal("Parse changed the document")
		}
		if err != nil {
			if strings.TrimSpace(err.Error()) == "policy:" || p != nil {
				t.Fatalf("bad failure: %v, %v", p, err)
			}
			return
		}
		checkSound(t, p)
	})
}

// checkSound holds what every accepted policy promises.
func checkSound(t *testing.T, p *Policy) {
	floors := p.Floors()
	if len(floors) == 0 {
		t.Fatal("accepted without a service")
	}
	for _, f := range floors {
		s := p.services[f.Service]
		r := Request{Service: f.Service}
		if s.currency != "" {
			r.Amount = &protocol.Amount{Currency: s.currency}
		}
		g, err := p.Level(r)
		if err != nil || g.Level != f.MinLevel || f.Service < minService {
			t.Fatalf("service %d: %+v, %v; floor %d", f.Service, g, err, f.MinLevel)
		}
		if g.TTL < time.Second || g.TTL > maxTTL || g.Lifetime < time.Second || g.Lifetime > maxLifetime {
			t.Fatalf("service %d: ttl %s, lifetime %s", f.Service, g.TTL, g.Lifetime)
		}
	}
}

func TestApprovalAndAttestation(t *testing.T) {
	parsed, err := Parse(Default())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := parsed.Approval(), (Approval{Role: "approver", Expires: 300 * time.Second}); got != want {
		t.Errorf("approval %+v, want %+v", got, want)
	}
	if !parsed.AcceptsAttestation(NoAttestation) || parsed.AcceptsAttestation("unverified") {
		t.Error("the default takes keys without attestation, and no others")
	}
	const door = "[[service]]\nid = 100\nname = \"door\"\nlevel = 1\n"
	silent, err := Parse([]byte(door))
	if err != nil {
		t.Fatal(err)
	}
	if silent.AcceptsAttestation(NoAttestation) || silent.Approval().Role != "approver" {
		t.Error("a policy that says nothing takes no UV key, and has the default approver")
	}
	for _, bad := range []string{
		"[approval]\nrole = \"Boss\"\n", "[approval]\nexpires = \"2h\"\n", "[approval]\nrole = 7\n",
		"[uv]\nattestation = \"none\"\n", "[uv]\nattestation = [1]\n", "[uv]\nattest = []\n",
	} {
		if _, err := Parse([]byte(bad + door)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestName(t *testing.T) {
	p := mustParse(t, string(Default()))
	if p.Name(100) != "door.open" || p.Name(999) != "" {
		t.Errorf("%q, %q", p.Name(100), p.Name(999))
	}
}
