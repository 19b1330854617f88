package store

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/message"
)

func testSeals(alarm func(error)) *Seals {
	s := NewSeals(alarm)
	s.Add(1, make([]byte, sealKeySize), false)
	s.Use(1)
	return s
}

func mustSeal(t *testing.T, s *Seals, r Sealed) Seal {
	t.Helper()
	seal, err := s.Make(r)
	if err != nil {
		t.Fatal(err)
	}
	return seal
}

// notSealed are the fields that no seal of their record covers, and why.
var notSealed = map[string]string{
	"Client.Highest":               "of the restraint",
	"Invitation.Replace":           "not stored",
	"Kept.Spent.Outcome.Replayed":  "not stored",
	"Kept.Spent.Outcome.Unspent":   "not stored",
	"Kept.Spent.Outcome.TriesLeft": "of attempts, not stored",
	"Kept.Charges[0].AmountLimit":  "not stored",
	"Kept.Charges[0].CountLimit":   "not stored",
	"Kept.Charges[0].Below":        "not stored",
}

// TestSealCoversEveryField changes each field of each record, down to the elements of
// lists, and requires another seal: a field that is added to a record and not to its seal
// fails here.
func TestSealCoversEveryField(t *testing.T) {
	s := testSeals(nil)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key := protocol.PublicKey{2}
	records := []Sealed{
		Client{UVKey: &key, Roles: []string{"a"}, Verifier: []byte{1}, Cert: []byte{1}},
		Restraint{Guard: Guard{Recent: []time.Time{at}}, Begun: []Challenge{{Counter: 1}}, Windows: []Window{{Currency: "EUR"}}, Sums: []Sum{{Buckets: []Bucket{{}, {Number: 5}}}}},
		Device{},
		Invitation{Roles: []string{"a"}, Response: []byte{1}},
		Kept{
			Spent: Spent{Outcome: Outcome{Asked: &message.AskedResult{}, At: at}, Pending: &Pending{}, Final: &Final{}},
			First: &Approves{}, Charges: []Charge{{Period: time.Hour, At: at}},
		},
		Begun{At: at},
		Policy{Document: []byte{1}},
		Key{Public: []byte{1}, Cert: []byte{1}, Tokens: []string{"a"}, Sealed: []byte{1}, SealedFor: []byte{1}},
		Setting{Value: []byte{1}},
		Admin{},
		Change{Document: []byte{1}, Signed: []string{"a"}, Signatures: []ChangeSignature{{Signature: []byte{1}, At: at}}},
		HeadRecord{},
	}
	for _, r := range records {
		whole := reflect.New(reflect.TypeOf(r)).Elem()
		whole.Set(reflect.ValueOf(r))
		before := mustSeal(t, s, r)
		n := 0
		mutate(whole, whole.Type().Name(), func(path string) {
			n++
			if changed := mustSeal(t, s, whole.Interface().(Sealed)); changed == before {
				if _, known := notSealed[path]; !known {
					t.Errorf("no seal covers %s", path)
				}
			}
		})
		if n == 0 {
			t.Errorf("%T has no fields", r)
		}
	}
}

// mutate changes each value within v, one at a time, and calls look in between.
func mutate(v reflect.Value, path string, look func(string)) {
	if notSealed[path] != "" || strings.HasSuffix(path, "._") {
		return
	}
	if v.Type() == reflect.TypeFor[time.Time]() {
		set(v, reflect.ValueOf(v.Interface().(time.Time).Add(time.Hour)), path, look)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			mutate(v.Field(i), path+"."+v.Type().Field(i).Name, look)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			set(v, reflect.Zero(v.Type()), path, look)
			mutate(v.Elem(), path, look)
		}
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.Len() > 0 {
			set(v, reflect.Zero(v.Type()), path, look)
		}
		for i := range v.Len() {
			mutate(v.Index(i), fmt.Sprintf("%s[%d]", path, i), look)
		}
	case reflect.String:
		set(v, reflect.ValueOf(v.String()+"x").Convert(v.Type()), path, look)
	case reflect.Bool:
		set(v, reflect.ValueOf(!v.Bool()).Convert(v.Type()), path, look)
	case reflect.Int, reflect.Int64:
		step := int64(1)
		if v.Type() == reflect.TypeFor[time.Duration]() {
			step = int64(time.Second)
		}
		set(v, reflect.ValueOf(v.Int()+step).Convert(v.Type()), path, look)
	default:
		set(v, reflect.ValueOf(v.Uint()+1).Convert(v.Type()), path, look)
	}
}

func set(v, to reflect.Value, path string, look func(string)) {
	before := reflect.New(v.Type()).Elem()
	before.Set(v)
	v.Set(to)
	look(path)
	v.Set(before)
}

// A seal is of one record in one place, under one version.
func TestSealIsOfOnePlace(t *testing.T) {
	var alarms []error
	s := testSeals(func(err error) { alarms = append(alarms, err) })
	s.Add(2, append(make([]byte, sealKeySize-1), 1), false)
	one := Setting{Name: "a", Value: []byte{1}}
	seal := mustSeal(t, s, one)
	if err := s.Check(one, ParseSeal(seal.Bytes())); err != nil {
		t.Fatal(err)
	}
	relabeled := seal
	relabeled.Version = 2
	for name, c := range map[string]struct {
		r    Sealed
		seal Seal
	}{
		"another name":     {Setting{Name: "b", Value: []byte{1}}, seal},
		"another table":    {Policy{Document: []byte{1}}, seal},
		"another version":  {one, relabeled},
		"an unknown one":   {one, Seal{Version: 9, MAC: seal.MAC}},
		"no seal":          {one, ParseSeal(nil)},
		"a longer seal":    {one, ParseSeal(append(seal.Bytes(), 0))},
		"a seal of no key": {one, Seal{}},
	} {
		if err := s.Check(c.r, c.seal); !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(alarms) != 7 || s.Forged() != 7 {
		t.Errorf("%d alarms, counted %d", len(alarms), s.Forged())
	}
}

// TestSealOfThePast checks that a version that was given up covers only old, finished decisions.
func TestSealOfThePast(t *testing.T) {
	s := testSeals(nil)
	old, young := Kept{}, Kept{}
	old.Outcome.At, young.Outcome.At = time.Now().Add(-AnswersKept-time.Hour), time.Now()
	waits := old
	waits.Pending = &Pending{}
	setting := Setting{Name: "a"}
	seals := map[Sealed]Seal{}
	for _, r := range []Sealed{&old, &young, &waits, &setting} {
		seals[r] = mustSeal(t, s, r)
	}
	s.Add(2, append(make([]byte, sealKeySize-1), 1), false)
	s.Use(2)
	s.Use(1) // never goes back
	if got := mustSeal(t, s, setting).Version; got != 2 {
		t.Fatalf("new seals are of mac@%d", got)
	}
	for r, seal := range seals {
		if err := s.Check(r, seal); err != nil {
			t.Errorf("%T before mac@1 is given up: %v", r, err)
		}
	}
	s.Add(1, make([]byte, sealKeySize), true)
	for r, seal := range seals {
		if err := s.Check(r, seal); (err == nil) != (r == Sealed(&old)) {
			t.Errorf("%+v after it: %v", r, err)
		}
	}
	s.Remove(1)
	if err := s.Check(&old, seals[&old]); !errors.Is(err, ErrForged) {
		t.Errorf("after it was destroyed: %v", err)
	}
}

// TestSealVector checks the bytes of seals in PROTOCOL.md §2.1. Another implementation computed the
// MACs: HMAC-SHA-256 under 32 zero bytes.
func TestSealVector(t *testing.T) {
	s := testSeals(nil)
	for _, c := range []struct {
		record Sealed
		mac    string
	}{
		// 8467…, ["setting", 'trust_domain', 1, {1: 'bank.example'}]
		{Setting{Name: "trust_domain", Value: []byte("bank.example")}, "5c7ac9ffa27b3d72a1e3c6c4cbcd46a736f6429a7a26aa9e3483383c20a061f5"},
		// 8469…, ["restraint", h'0102030405060708', 1, {1: 0}]: 0 is a counter
		{Restraint{Client: protocol.ClientID{1, 2, 3, 4, 5, 6, 7, 8}}, "a8ef704c3e93fc3ce764f805eb02a01ca09e01110a528d394dd68c944010ab74"},
		// 8469…, ["restraint", h'0102030405060708', 1, {1: 0, 7: [[200, 86400, "EUR", [1177777, 4999, 1, 2, 9998, 2]]]}]
		{Restraint{Client: protocol.ClientID{1, 2, 3, 4, 5, 6, 7, 8}, Sums: []Sum{{
			Service: 200, Period: 86400, Currency: "EUR", Buckets: []Bucket{{1177777, 4999, 1}, {1177779, 9998, 2}},
		}}}, "e696c8f1352e591db80599a66cbe8ab5e8084cc01acb8929a91caec2efc23b26"},
	} {
		if got := fmt.Sprintf("%x", mustSeal(t, s, c.record).MAC); got != c.mac {
			t.Errorf("the seal of %+v is %s, want %s", c.record, got, c.mac)
		}
	}
}
