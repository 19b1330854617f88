package pool

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
)

// TestHostCheck: workers check a password on the host if the pool says so, and say so; without it they refuse.
func TestHostCheck(t *testing.T) {
	metrics := prometheus.NewRegistry()
	r := newRig(t, func(c *Config) { c.HostCheck, c.Registerer = true, metrics })
	if !strings.Contains(r.log.String(), "password verifiers are opened and compared in the memory of hsm-worker") {
		t.Errorf("no notice: %s", r.log)
	}
	i := r.secret(t)
	kept, err := r.pool.Import(t.Context(), i)
	if err != nil || len(kept) != 56 {
		t.Fatalf("kept %d bytes, %v", len(kept), err)
	}
	m := hmac.New(sha256.New, make([]byte, 32))
	m.Write([]byte("x"))
	if got, err := r.pool.MACWrapped(t.Context(), i.Wrap, kept, []byte("x")); err != nil || !hmac.Equal(got, m.Sum(nil)) {
		t.Errorf("MACWrapped: %x, %v", got, err)
	}
	if got := gauge(t, metrics, "countersign_hsm_password_check_on_host"); got != 1 {
		t.Errorf("the metric is %v, want 1", got)
	}
	r.pool.Close()
	r.cfg.HostCheck, r.cfg.Registerer, r.cfg.PIN = false, nil, hsm.PIN(r.hsm.PIN)
	off, err := Open(t.Context(), r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(off.Close)
	if _, err := off.MACWrapped(t.Context(), i.Wrap, kept, nil); !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), "hsm.password_check") {
		t.Errorf("with the setting off: %v", err)
	}
	if _, err := off.Import(t.Context(), importBy(t, off, i.Wrap)); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("an import with the setting off: %v", err)
	}
}

// importBy is an import of a secret, with a new enrol key.
func importBy(t *testing.T, p *Pool, wrap hsm.KeyID) hsm.Import {
	t.Helper()
	enrol, err := p.Generate(t.Context(), hsm.KeySpec{Label: "enrol@2", Usage: hsm.DeriveP256})
	if err != nil {
		t.Fatal(err)
	}
	i := hsmtest.WrapFor(t, enrol, make([]byte, 32))
	i.Wrap = wrap
	return i
}

func gauge(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
