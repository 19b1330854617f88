package protocol_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"testing"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// vectorMembers adds one byte string of each vector of op to the corpus.
func vectorMembers(f *testing.F, file, op, member string) {
	f.Helper()
	for _, v := range loadVectors(f, file) {
		if v.Op != op {
			continue
		}
		var in map[string]json.RawMessage
		if err := json.Unmarshal(v.In, &in); err != nil {
			f.Fatal(err)
		}
		var b hexBytes
		if json.Unmarshal(in[member], &b) != nil {
			b = hexBytes(in[member])
		}
		f.Add([]byte(b))
	}
}

func mustCode(t *testing.T, err error) {
	t.Helper()
	if _, ok := protocol.CodeOf(err); err != nil && !ok {
		t.Fatalf("error without a code: %v", err)
	}
}

func FuzzParseEnrolRequest(f *testing.F) {
	vectorMembers(f, "enrol.json", "enrol", "request")
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := enrol.ParseRequest(body)
		mustCode(t, err)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := enrol.ParseRequest(again); err != nil {
			t.Fatalf("%s does not parse as %s: %v", body, again, err)
		}
	})
}

func FuzzDecisionCheck(f *testing.F) {
	vectorMembers(f, "decisions.json", "decision", "decision")
	vectorMembers(f, "receipts.json", "decision", "decision")
	check := newPKI(f).check(f)
	check.Strict = true
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := check.Verify(b)
		if err == nil {
			t.Fatal("a decision verified under a key that signed none")
		}
		mustCode(t, err)
		s, err := signedPayload(b)
		if err != nil {
			return
		}
		if d, err := receipt.Parse(s); err == nil {
			kept, err := withoutIgnored(s)
			if err != nil || !bytes.Equal(d.Marshal(), kept) {
				t.Fatalf("payload %x, written as %x, %v", kept, d.Marshal(), err)
			}
		}
	})
}

func FuzzTrustUpdate(f *testing.F) {
	vectorMembers(f, "certs.json", "mu", "mu")
	pinned := newPKI(f).trust(f)
	f.Fuzz(func(t *testing.T, mu []byte) {
		next, err := pinned.Update(mu, vectorTime)
		mustCode(t, err)
		if next.RootNumber != pinned.RootNumber || len(next.KeyCerts(trust.UseKEM)) != 1 {
			t.Fatalf("an MU of another root changed the state to %+v", next)
		}
	})
}

func FuzzBodies(f *testing.F) {
	f.Add(fullApply().Marshal())
	f.Add(deviceapi.ApplyResponse{M2: []byte{0x21}, Handle: []byte{1}, Level: 3, TTL: 90}.Marshal())
	f.Add(deviceapi.CountersignRequest{Handle: []byte{1}, M3: []byte{0x31}}.Marshal())
	f.Add(deviceapi.CountersignResponse{
		M4: []byte{0x41}, Result: protocol.ResultPending, Decision: []byte{2}, NextHandle: []byte{3},
	}.Marshal())
	f.Add(deviceapi.OutcomeRequest{Performed: true}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzBody(t, b, deviceapi.ParseApplyRequest)
		fuzzBody(t, b, deviceapi.ParseApplyResponse)
		fuzzBody(t, b, deviceapi.ParseCountersignRequest)
		fuzzBody(t, b, deviceapi.ParseCountersignResponse)
		fuzzBody(t, b, deviceapi.ParseOutcomeRequest)
	})
}

// fuzzBody: a body that parses and is written again parses to the same value.
func fuzzBody[T interface{ Marshal() []byte }](t *testing.T, b []byte, parse func([]byte) (T, error)) {
	v, err := parse(b)
	mustCode(t, err)
	if err != nil {
		return
	}
	written := v.Marshal()
	again, err := parse(written)
	if err != nil || !bytes.Equal(again.Marshal(), written) || len(written) > len(b) {
		t.Fatalf("%x, written as %x, parses as %+v, %v", b, written, again, err)
	}
}

// withoutIgnored returns the map without its keys of 64 and above.
func withoutIgnored(b []byte) ([]byte, error) {
	var m map[int64]cbor.RawMessage
	if err := cbor.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	maps.DeleteFunc(m, func(k int64, _ cbor.RawMessage) bool { return k >= 64 })
	return cbor.Marshal(m), nil
}
