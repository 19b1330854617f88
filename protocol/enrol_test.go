package protocol_test

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/trust"
)

func newEnrolRequest(t testing.TB, p testPKI, uv *keySigner) (enrol.Request, keySigner) {
	t.Helper()
	signing := newKeySigner(t)
	r := enrol.Request{
		ActivationCode: enrol.NewActivationCode(p.root.public(t).RootHash(), [13]byte{1, 2, 3}), SigningKey: signing.public(t),
		Password: &enrol.Password{
			Salt: [16]byte{1}, MemoryKiB: enrol.MinPasswordMemoryKiB, Iterations: 2, Parallelism: 1, Ephemeral: newKeySigner(t).public(t),
		},
	}
	var uvSigner protocol.DigestSigner
	if uv != nil {
		key := uv.public(t)
		r.UVKey, uvSigner, r.Attestation = &key, *uv, []byte("attested")
	}
	r, err := enrol.Sign(t.Context(), r, signing, uvSigner)
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
		if got, err := enrol.ParseRequest(b); err != nil || !reflect.DeepEqual(got, want) {
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
	good, proof := string(b), protocol.Base64(r.Proof[:]).String()
	if _, err := enrol.ParseRequest(b); err != nil {
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
		if _, err := enrol.ParseRequest([]byte(body)); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("%s: got %v, want a format error", name, err)
		}
	}
}

// nextChar changes only the unused bits of the last character: 64 bytes leave four of them.
func nextChar(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)+1])
}

func TestEnrolResponse(t *testing.T) {
	p := newPKI(t)
	pinned := p.trust(t)
	req, _ := newEnrolRequest(t, p, nil)
	cert, err := trust.SignClientCert(t.Context(), p.keys[trust.UseClientCA], 1, trust.ClientCert{
		Client: req.ClientID(), SigningKey: req.SigningKey, NotBefore: vectorTime, NotAfter: vectorTime + 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := enrol.Response{
		Client: req.ClientID(), RootKey: pinned.Root, NextRootHash: pinned.NextRootHash, ClientCert: cert,
		KeyCerts: [][]byte{p.certify(t, trust.UseKEM, 2)}, Floors: []protocol.Floor{{Service: 1027, MinLevel: 2}},
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := enrol.ParseResponse(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
	pinned, c, err := got.Check(req, pinned, vectorTime)
	if k, _ := pinned.Key(trust.UseKEM); err != nil || c.Client != req.ClientID() || k.Epoch != 2 {
		t.Errorf("client %v with kem epoch %d, %v, want client %v with epoch 2", c.Client, k.Epoch, err, req.ClientID())
	}
	other, _ := newEnrolRequest(t, p, nil)
	if _, _, err := got.Check(other, pinned, vectorTime); !errors.Is(err, protocol.CodeCertificate) {
		t.Errorf("answer to another request: got %v, want a certificate error", err)
	}
	if _, _, err := got.Check(req, newPKI(t).trust(t), vectorTime); !errors.Is(err, protocol.CodeCertificate) {
		t.Errorf("answer under another root: got %v, want a certificate error", err)
	}
	if _, _, err := got.Check(req, pinned, vectorTime+11); !errors.Is(err, protocol.CodeCertificate) {
		t.Errorf("certificate that is over: got %v, want a certificate error", err)
	}
}

func TestDeviceEnrolJSON(t *testing.T) {
	p := newPKI(t)
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{1}}))
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{2}}))
	checkJSON(t, enrol.ParseDeviceRequest, enrol.DeviceRequest{ActivationCode: enrol.NewActivationCode(protocol.RootHash{1}, [13]byte{2}), CSR: csr})
	checkJSON(t, enrol.ParseDeviceResponse, enrol.DeviceResponse{Certificates: []string{cert, cert}, Trust: p.document(t)})
	checkJSON(t, enrol.ParseRenewRequest, enrol.RenewRequest{CSR: csr})
	checkJSON(t, enrol.ParseRenewResponse, enrol.RenewResponse{Certificates: []string{cert}})
	for _, body := range []enrol.RenewRequest{{CSR: ""}, {CSR: cert}, {CSR: csr + csr}, {CSR: csr + "x"}} {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := enrol.ParseRenewRequest(b); !errors.Is(err, protocol.CodeFormat) {
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
	code := enrol.NewActivationCode(protocol.RootHash{0xff}, [13]byte{0xff, 1, 2})
	text := code.String()
	if got, err := enrol.ParseActivationCode(text); err != nil || got != code {
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
		if _, err := enrol.ParseActivationCode(bad); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("%s (%q): got %v, want a format error", name, bad, err)
		}
	}
}
