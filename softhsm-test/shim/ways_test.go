package shim_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/pool"
)

// opened opens a pool of one worker behind rules that hold from its start, and returns its log.
func (b *bed) opened(require []hsm.Usage, rules ...string) (*pool.Pool, *bytes.Buffer, error) {
	b.Helper()
	b.hsm.Setenv(b)
	for _, assignment := range b.Env() {
		name, value, _ := strings.Cut(assignment, "=")
		b.Setenv(name, value)
	}
	b.set(rules...)
	log := &bytes.Buffer{}
	p, err := pool.Open(b.Context(), pool.Config{
		Binary: hsmtest.Worker(b), Module: b.Module, TokenLabel: b.hsm.Label, PIN: hsm.PIN(b.hsm.PIN), Workers: 1, Sessions: 1,
		Require: require, Logger: hclog.New(&hclog.LoggerOptions{Output: log}),
	})
	if err == nil {
		b.Cleanup(p.Close)
	}
	return p, log, err
}

func (b *bed) makes(p *pool.Pool, usage hsm.Usage) hsm.Key {
	b.Helper()
	k, err := p.Generate(b.Context(), hsm.KeySpec{Label: usage.String() + "@1", Usage: usage})
	if err != nil {
		b.Fatal(err)
	}
	return k
}

// TestNoCopyObject: a module without C_CopyObject makes every key, as AWS CloudHSM and YubiHSM 2 are
// without it.
func TestNoCopyObject(t *testing.T) {
	b := newBed(t)
	p, _, err := b.opened(nil, "C_CopyObject rv CKR_FUNCTION_NOT_SUPPORTED")
	if err != nil {
		t.Fatal(err)
	}
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.MACKey, hsm.WrapKey, hsm.SignRSA2048} {
		b.makes(p, usage)
	}
	if objects, err := p.Objects(t.Context()); err != nil || len(objects) != 6 {
		t.Errorf("%d objects, %v; want five and that of the bed", len(objects), err)
	}
}

// TestDeriveRefused: a module that lists CKM_ECDH1_DERIVE and refuses its parameter is refused at the
// start where it is needed; the error names mechanism, parameter and consequence. Elsewhere a notice
// says so.
func TestDeriveRefused(t *testing.T) {
	const rule = "C_DeriveKey rv CKR_MECHANISM_PARAM_INVALID"
	b := newBed(t)
	_, _, err := b.opened([]hsm.Usage{hsm.SignP256, hsm.DeriveP256}, rule)
	if !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("%v, want ErrUnavailable", err)
	}
	want := []string{"opening authorization requests", "CKM_ECDH1_DERIVE", "CKD_NULL", "CKR_MECHANISM_PARAM_INVALID"}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in %q", w, err)
		}
	}
	p, log, err := b.opened([]hsm.Usage{hsm.SignP256}, rule)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if !strings.Contains(log.String(), w) {
			t.Errorf("no %q in the log %s", w, log)
		}
	}
	b.makes(p, hsm.SignP256)
	if _, err := p.Generate(t.Context(), hsm.KeySpec{Label: "kem@1", Usage: hsm.DeriveP256}); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("a key to derive with: %v, want ErrUnsupported", err)
	}
}

// TestWrapRefused: no key wraps; the notice names the mechanism that was tried.
func TestWrapRefused(t *testing.T) {
	b := newBed(t)
	p, log, err := b.opened(nil, "C_WrapKey rv CKR_MECHANISM_INVALID")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"it refuses CKM_AES_KEY_WRAP_PAD: C_WrapKey with CKM_AES_KEY_WRAP_PAD", "key wrap: none", "keeping password verifiers"} {
		if !strings.Contains(log.String(), w) {
			t.Errorf("no %q in the log %s", w, log)
		}
	}
	if _, err := p.Generate(t.Context(), hsm.KeySpec{Label: "wrap@1", Usage: hsm.WrapKey}); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("a wrap key: %v, want ErrUnsupported", err)
	}
}

// TestNotTheCaller: a module that blames the parameter of a good derivation, or the data of a MAC,
// after it accepted them before is at fault, and not the caller.
func TestNotTheCaller(t *testing.T) {
	b := newBed(t)
	p, _, err := b.opened(nil)
	if err != nil {
		t.Fatal(err)
	}
	kem, mac := b.makes(p, hsm.DeriveP256), b.makes(p, hsm.MACKey)
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range []string{"CKR_MECHANISM_PARAM_INVALID", "CKR_MECHANISM_INVALID", "CKR_TEMPLATE_INCONSISTENT"} {
		b.set("C_DeriveKey rv "+code, "C_Sign rv "+code+" size=32")
		if _, err := p.Decap(t.Context(), kem.ID, hsm.DHKEM, peer.PublicKey()); !errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: Decap: %v, want ErrUnavailable", code, err)
		}
		if _, err := p.MAC(t.Context(), mac.ID, []byte("x")); !errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: MAC: %v, want ErrUnavailable", code, err)
		}
	}
}

// TestFaultAtStart: a worker that starts while the module fails does not do without a way for its whole
// life.
func TestFaultAtStart(t *testing.T) {
	b := newBed(t)
	p, _, err := b.opened(nil)
	if err != nil {
		t.Fatal(err)
	}
	i := hsmtest.WrapFor(t, b.makes(p, hsm.DeriveP256), make([]byte, 32))
	i.Wrap = b.makes(p, hsm.WrapKey).ID
	kept, err := p.Import(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	ways := p.Ways()
	check := func() error {
		_, err := p.MACWrapped(t.Context(), i.Wrap, kept, nil)
		return err
	}
	for _, code := range []string{"CKR_GENERAL_ERROR", "CKR_DEVICE_ERROR"} {
		starts := b.read()["C_Initialize"].Calls
		b.set("C_UnwrapKey rv " + code)
		if err := check(); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", code, err)
		}
		until(t, "no worker starts", func() bool { return b.read()["C_Initialize"].Calls > starts+8 }) // one calls it three or four times
		b.set()
		until(t, "the token checks again", func() bool { return check() == nil })
		if now := p.Ways(); !slices.Equal(now, ways) {
			t.Errorf("%s: used as %q, before %q", code, now, ways)
		}
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick, end := time.NewTicker(5*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not so: %s", what)
		}
	}
}

// TestLongMAC: a module that takes 16 KiB at once, as AWS CloudHSM, gives the same MAC of 64 KiB.
func TestLongMAC(t *testing.T) {
	b := newBed(t)
	p, _, err := b.opened(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, data := b.makes(p, hsm.MACKey), make([]byte, 64<<10)
	want, err := p.MAC(t.Context(), k.ID, data)
	if err != nil {
		t.Fatal(err)
	}
	b.set("C_Sign rv CKR_DATA_LEN_RANGE size=32")
	got, err := p.MAC(t.Context(), k.ID, data)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
}

// TestProofDuringOutage: a private key without a public half, whose proof met a failure of the token, is asked again
// later.
func TestProofDuringOutage(t *testing.T) {
	b := newBed(t)
	p, _, err := b.opened(nil)
	if err != nil {
		t.Fatal(err)
	}
	k := b.makes(p, hsm.SignP256)
	p.Close()
	b.hsm.Tool(t, "--delete-object", "--type", "pubkey", "--label", k.Label)
	again, _, err := b.opened(nil)
	if err != nil {
		t.Fatal(err)
	}
	b.set("C_Sign rv CKR_DEVICE_ERROR")
	if err := again.Know(t.Context(), [][]byte{k.Public}); err != nil {
		t.Fatal(err)
	}
	if keys, err := again.Keys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("during the failure: %v, %v", keys, err)
	}
	b.set()
	if keys, err := again.Keys(t.Context()); err != nil || len(keys) != 1 || keys[0].ID != k.ID {
		t.Errorf("after the failure: %v, %v; want %s", keys, err, k.Label)
	}
}
