package protocol_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	lenient "github.com/fxamacker/cbor/v2"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// addCBOR seeds a fuzz target with the maps of decode.json and fuzz.json.
func addCBOR(f *testing.F, what string) {
	for _, file := range []string{"decode.json", "fuzz.json"} {
		for _, v := range loadVectors(f, file) {
			var in struct {
				What string
				CBOR hexBytes
			}
			if err := json.Unmarshal(v.In, &in); err != nil {
				f.Fatal(err)
			}
			if in.What == what {
				f.Add([]byte(in.CBOR))
			}
		}
	}
}

// fuzzPayload: what parses marshals back to the same bytes but for ignored keys.
func fuzzPayload[P any](f *testing.F, what string, parse func([]byte) (P, error), write func(P) []byte) {
	addCBOR(f, what)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b)
		if err != nil {
			if code, _ := protocol.CodeOf(err); code != protocol.CodeFormat {
				t.Fatalf("%v is not a format error", err)
			}
			return
		}
		back := write(p)
		var in, out map[uint64]any
		if lenient.Unmarshal(b, &in) != nil || lenient.Unmarshal(back, &out) != nil {
			t.Fatalf("%x, written as %x, does not decode", b, back)
		}
		before := len(in)
		for k := range in {
			if _, isKnown := out[k]; k >= 64 && !isKnown {
				delete(in, k)
			}
		}
		if len(in) == before && !bytes.Equal(b, back) || !reflect.DeepEqual(in, out) {
			t.Fatalf("%x comes back as %x", b, back)
		}
		if again, err := parse(back); err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%+v comes back as %+v, %v", p, again, err)
		}
	})
}

func FuzzP1(f *testing.F) { fuzzPayload(f, "p1", message.ParseP1, message.P1.Marshal) }
func FuzzP2(f *testing.F) { fuzzPayload(f, "p2", message.ParseP2, message.P2.Marshal) }
func FuzzP3(f *testing.F) { fuzzPayload(f, "p3", message.ParseP3, message.P3.Marshal) }

func FuzzP4(f *testing.F) {
	yes, no := true, false
	for _, performed := range []*bool{&yes, &no} {
		asked := &message.AskedResult{Result: protocol.ResultApproved}
		f.Add(message.P4{Result: protocol.ResultApproved, Asked: asked, Performed: performed}.Marshal())
	}
	fuzzPayload(f, "p4", message.ParseP4, message.P4.Marshal)
}

func FuzzStatement(f *testing.F) {
	for _, v := range loadVectors(f, "countersign.json") {
		var in struct{ Stmt hexBytes }
		if err := json.Unmarshal(v.In, &in); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(in.Stmt))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := message.ParseStatement(b)
		if err != nil {
			return
		}
		if back := message.NewStatement(s.Root, s.RawP1, s.Challenge, s.RawP2); !bytes.Equal(back, b) {
			t.Fatalf("%x comes back as %x", b, []byte(back))
		}
	})
}

func FuzzMessage(f *testing.F) {
	for _, v := range loadVectors(f, "messages.json") {
		var in sessionIn
		if err := json.Unmarshal(v.In, &in); err != nil {
			f.Fatal(err)
		}
		for _, m := range [][]byte{in.M1, in.M2, in.M3, in.M4} {
			f.Add(m)
		}
	}
	f.Add(message.LinkError{Code: protocol.CodeLink}.Marshal())
	f.Add(trust.KeyUpdate{Certs: [][]byte{{0x80}}}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := message.ParseM1(b); err == nil {
			if _, _, err := m.Open(kemKey(m.Suite, bytes.Repeat([]byte{1}, 32)), protocol.RootID{}); err == nil {
				t.Fatal("a message for nobody opens")
			}
		}
		if e, err := message.ParseLinkError(b); err == nil && !bytes.Equal(e.Marshal(), b) {
			t.Fatalf("ME %x comes back as %x", b, e.Marshal())
		}
		if u, err := trust.ParseKeyUpdate(b); err == nil && !bytes.Equal(u.Marshal(), b) {
			t.Fatalf("MU %x comes back as %x", b, u.Marshal())
		}
		c := message.NewChannel(message.Secret{}, b, protocol.Challenge{})
		_, err2 := c.OpenM2(b)
		_, _, err3 := c.OpenM3(b)
		_, err4 := c.OpenM4([]byte("\x31\x000123456789abcdef"), b)
		if err2 == nil || err3 == nil || err4 == nil {
			t.Fatal("a message of nobody opens")
		}
	})
}
