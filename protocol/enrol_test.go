package protocol

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func newEnrolRequest(t testing.TB, p testPKI, uv *keySigner) (EnrolRequest, keySigner) {
	t.Helper()
	signing := newKeySigner(t)
	r := EnrolRequest{
		ActivationCode: NewActivationCode(p.root.public(t).RootHash(), [13]byte{1, 2, 3}), SigningKey: signing.public(t),
		Password: &PasswordEnrolment{
			Salt: [16]byte{1}, MemoryKiB: MinPasswordMemoryKiB, Iterations: 2, Parallelism: 1, Ephemeral: newKeySigner(t).public(t),
		},
	}
	var uvSigner DigestSigner
	if uv != nil {
		key := uv.public(t)
		r.UVKey, uvSigner, r.Attestation = &key, *uv, []byte("attested")
	}
	r, err := SignEnrol(t.Context(), r, signing, uvSigner)
	if err != nil {
		t.Fatal(err)
	}
	return r, signing
}

func TestEnrolRequestJSON(t *testing.T) {
	p, uv := newPKI(t), newKeySigner(t)
	for _, key := range []*keySigner{nil, &uv} {
		want, _ := newEnrolRequest(t, p, key)
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseEnrolRequest(b); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestEnrolRequestStrict(t *testing.T) {
	r, _ := newEnrolRequest(t, newPKI(t), nil)
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	good, proof := string(b), Base64(r.Proof[:]).String()
	if _, err := ParseEnrolRequest(b); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"unknown member":   strings.Replace(good, `{`, `{"extra":1,`, 1),
		"duplicate member": strings.Replace(good, `{`, `{"proof":"`+proof+`",`, 1),
		"duplicate inside": strings.Replace(good, `"memory_kib"`, `"iterations":2,"memory_kib"`, 1),
		"other case":       strings.Replace(good, `"proof"`, `"Proof"`, 1),
		"null member":      strings.Replace(good, `{`, `{"uv_key":null,`, 1),
		"trailing data":    good + `{}`,
		"trailing brace":   good + `}`,
		"array":            `[` + good + `]`,
		"line break":       strings.Replace(good, proof, proof[:4]+`\n`+proof[4:], 1),
		"standard base64":  strings.Replace(good, proof, strings.Repeat("+", len(proof)), 1),
		"trailing bits":    strings.Replace(good, proof, proof[:len(proof)-1]+nextChar(proof[len(proof)-1]), 1),
		"not UTF-8":        strings.Replace(good, `OA1`, "\xff", 1),
		"lower-case code":  strings.Replace(good, r.ActivationCode.String(), strings.ToLower(r.ActivationCode.String()), 1),
		"cheap Argon2id":   strings.Replace(good, `"iterations":2`, `"iterations":1`, 1),
		"float":            strings.Replace(good, `"iterations":2`, `"iterations":2.5`, 1),
		"proof missing":    strings.Replace(good, `,"proof":"`+proof+`"`, ``, 1),
		"cut":              good[:len(good)-1],
		"empty":            "",
		"deep":             strings.Replace(good, `{`, `{"extra":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`,`, 1),
	} {
		if body == good {
			t.Fatalf("%s: nothing changed", name)
		}
		if _, err := ParseEnrolRequest([]byte(body)); !errors.Is(err, CodeFormat) {
			t.Errorf("%s: got %v, want a format error", name, err)
		}
	}
}

// nextChar changes only the bits of the last character that stand for nothing: 64
// bytes leave four of them.
func nextChar(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)+1])
}

func TestEnrolResponse(t *testing.T) {
	p := newPKI(t)
	trust := p.trust(t)
	req, _ := newEnrolRequest(t, p, nil)
	cert, err := SignClientCert(t.Context(), p.keys[UseClientCA], 1, ClientCert{
		Client: req.ClientID(), SigningKey: req.SigningKey, NotBefore: vectorTime, NotAfter: vectorTime + 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := EnrolResponse{
		Client: req.ClientID(), RootKey: trust.Root, NextRootHash: trust.NextRootHash, ClientCert: cert,
		KeyCerts: [][]byte{p.certify(t, UseKEM, 2)}, Floors: []Floor{{Service: 1027, MinLevel: 2}},
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseEnrolResponse(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
	trust, c, err := got.Check(req, trust, vectorTime)
	if k, _ := trust.Key(UseKEM); err != nil || c.Client != req.ClientID() || k.Epoch != 2 {
		t.Errorf("client %v with kem epoch %d, %v, want client %v with epoch 2", c.Client, k.Epoch, err, req.ClientID())
	}
	other, _ := newEnrolRequest(t, p, nil)
	if _, _, err := got.Check(other, trust, vectorTime); !errors.Is(err, CodeCertificate) {
		t.Errorf("answer to another request: got %v, want a certificate error", err)
	}
	if _, _, err := got.Check(req, newPKI(t).trust(t), vectorTime); !errors.Is(err, CodeCertificate) {
		t.Errorf("answer under another root: got %v, want a certificate error", err)
	}
	if _, _, err := got.Check(req, trust, vectorTime+11); !errors.Is(err, CodeCertificate) {
		t.Errorf("certificate that is over: got %v, want a certificate error", err)
	}
}

func TestDeviceEnrolJSON(t *testing.T) {
	p := newPKI(t)
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{1}}))
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{2}}))
	checkJSON(t, ParseDeviceEnrolRequest, DeviceEnrolRequest{NewActivationCode(RootHash{1}, [13]byte{2}), csr})
	checkJSON(t, ParseDeviceEnrolResponse, DeviceEnrolResponse{[]string{cert, cert}, p.document(t)})
	checkJSON(t, ParseRenewRequest, RenewRequest{csr})
	checkJSON(t, ParseRenewResponse, RenewResponse{[]string{cert}})
	for _, body := range []RenewRequest{{""}, {cert}, {csr + csr}, {csr + "x"}} {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRenewRequest(b); !errors.Is(err, CodeFormat) {
			t.Errorf("%q: got %v, want a format error", body.CSR, err)
		}
	}
}

func checkJSON[T any](t *testing.T, parse func([]byte) (T, error), want T) {
	t.Helper()
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parse(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestActivationCode(t *testing.T) {
	code := NewActivationCode(RootHash{0xff}, [13]byte{0xff, 1, 2})
	text := code.String()
	if got, err := ParseActivationCode(text); err != nil || got != code {
		t.Fatalf("%s parses as %s, %v", text, got, err)
	}
	if got := fmt.Sprintf("%v %+v %#v", code.Secret, code.Secret, code.Secret); strings.Contains(got, string(code.Secret[:])) {
		t.Errorf("secret prints: %s", got)
	}
	for name, bad := range map[string]string{
		"lower case":     strings.ToLower(text),
		"other prefix":   "OA2" + text[3:],
		"short secret":   text[:len(text)-1],
		"digit one":      text[:len(text)-1] + "1",
		"trailing bits":  text[:29] + "B" + text[30:],
		"line break":     text + "\n",
		"inner break":    text[:10] + "\n" + text[11:],
		"another part":   text + "-A",
		"no code at all": "",
	} {
		if _, err := ParseActivationCode(bad); !errors.Is(err, CodeFormat) {
			t.Errorf("%s (%q): got %v, want a format error", name, bad, err)
		}
	}
}
