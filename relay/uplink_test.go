package relay

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/trust"
	"countersign/relay/uplink"
)

func TestEnrolment(t *testing.T) {
	f := newFake(t)
	c := uplink.EnrolConfig{URL: f.server.URL, CAFile: f.caFile, Code: f.code(), StateDir: filepath.Join(t.TempDir(), "state")}
	f.fail["/v1/enrol/device"] = func(w http.ResponseWriter, _ *http.Request) { refuse(w, protocol.CodeHSM) }
	if _, err := uplink.Enrol(t.Context(), c); !errors.Is(err, protocol.CodeHSM) {
		t.Errorf("while the HSM is away: %v, want its code", err)
	}
	f.set(func() { clear(f.fail) })
	identity, err := uplink.Enrol(t.Context(), c)
	must(t, err)
	if identity.ID != f.deviceID() || identity.Name != deviceName {
		t.Errorf("enrolled as %+v", identity)
	}
	if b := f.bodies["/v1/enrol/device"]; len(b) != 2 || string(b[0]) != string(b[1]) {
		t.Error("the repeat differs from the first request")
	}
	info, err := os.Stat(filepath.Join(c.StateDir, "key.pem"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("key has mode %v, want 0600", info.Mode())
	}
	s, err := uplink.Open(c.StateDir)
	must(t, err)
	if s.Trust().Root != f.root.public(t) || s.Identity() != identity {
		t.Errorf("stored %v and %+v", s.Trust().Root, s.Identity())
	}
	if _, err := uplink.Enrol(t.Context(), c); !errors.Is(err, uplink.ErrEnrolled) {
		t.Errorf("enrolling twice: %v, want %v", err, uplink.ErrEnrolled)
	}
}

// TestOtherAnswers: the right answer with another status or media type is not the appliance's.
func TestOtherAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		status    int
		mediaType string
		want      error
	}{
		"the appliance's":      {200, "application/json; charset=utf-8", nil},
		"another status":       {202, "application/json", protocol.CodeServerUnreachable},
		"another media type":   {200, "text/html", protocol.CodeServerUnreachable},
		"media type of others": {200, deviceapi.BodyType, protocol.CodeServerUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.fail["/v1/enrol/device"] = func(w http.ResponseWriter, _ *http.Request) {
				f.mu.Lock()
				defer f.mu.Unlock()
				right := httptest.NewRecorder()
				f.enrol(right, f.bodies["/v1/enrol/device"][0])
				w.Header().Set("Content-Type", c.mediaType)
				w.WriteHeader(c.status)
				_, _ = w.Write(right.Body.Bytes())
			}
			conf := uplink.EnrolConfig{URL: f.server.URL, CAFile: f.caFile, Code: f.code(), StateDir: t.TempDir()}
			if _, err := uplink.Enrol(t.Context(), conf); !errors.Is(err, c.want) {
				t.Errorf("enrolled with %v, want %v", err, c.want)
			}
		})
	}
}

func TestEnrolmentTrustsTheCodeOnly(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fake, *uplink.EnrolConfig)
		want   protocol.Code
	}{
		"code of another root": {func(f *fake, _ *uplink.EnrolConfig) { f.root = newSigningKey(t) }, protocol.CodeCertificate},
		"server of another ca": {func(f *fake, _ *uplink.EnrolConfig) {
			f.keyCerts[2] = f.keyCert(trust.UseCA, 1, newSigningKey(t).public(t))
		}, protocol.CodeCertificate},
		"CA file of another": {func(_ *fake, c *uplink.EnrolConfig) { c.CAFile = newFake(t).caFile }, protocol.CodeServerUnreachable},
		"code not accepted":  {func(f *fake, c *uplink.EnrolConfig) { c.Code.Secret[0] = 'Z' }, protocol.CodeDevice},
		"TLS 1.2": {func(f *fake, c *uplink.EnrolConfig) {
			f.server.TLS.MinVersion, f.server.TLS.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		}, protocol.CodeServerUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			conf := uplink.EnrolConfig{URL: f.server.URL, CAFile: f.caFile, Code: f.code(), StateDir: t.TempDir()}
			c.change(f, &conf)
			if _, err := uplink.Enrol(t.Context(), conf); !errors.Is(err, c.want) {
				t.Errorf("enrolled with %v, want %v", err, c.want)
			}
			if _, err := uplink.Open(conf.StateDir); !errors.Is(err, uplink.ErrNotEnrolled) {
				t.Errorf("afterwards the state is %v, want not enrolled", err)
			}
		})
	}
}

func TestRenewalAtHalfLife(t *testing.T) {
	f, c := enrolled(t)
	g := start(t, f, c)
	eventually(t, "the trust is fetched", func() bool { return g.count("/v1/trust") > 0 })
	if g.count("/v1/renew") != 0 {
		t.Fatal("renewed before half its life")
	}
	must(t, g.stop())

	f, c = enrolledFor(t, 4*time.Second) // one of five seconds is over
	g = start(t, f, c)
	old := g.relay.Identity()
	eventually(t, "the certificate is renewed", func() bool { return g.relay.Identity().NotAfter.After(old.NotAfter) })
	if g.relay.Identity().ID != old.ID {
		t.Error("the renewed certificate is another device's")
	}
	s, err := uplink.Open(c.StateDir)
	must(t, err)
	if !s.Identity().NotAfter.After(old.NotAfter) {
		t.Error("the renewed certificate is not stored")
	}
}

func TestDecisionByNewKey(t *testing.T) {
	g := newRig(t)
	eventually(t, "the first trust is there", func() bool { return g.count("/v1/trust") > 0 && g.relay.Reachable() })
	next := newSigningKey(t)
	g.set(func() {
		g.keyCerts = append(g.keyCerts, g.keyCert(trust.UseDecision, 2, next.public(t)))
		g.decision, g.epoch = next, 2
	})
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	if got := len(g.hookLog()); got != 1 {
		t.Errorf("%d acts on a decision by a key that the root certified meanwhile, want 1", got)
	}
	s, err := uplink.Open(g.dir)
	must(t, err)
	if k, _ := s.Trust().Key(trust.UseDecision); k.Epoch != 2 {
		t.Errorf("stored decision epoch %d, want 2", k.Epoch)
	}
}

func TestOtherRootIsNotFollowed(t *testing.T) {
	g := newRig(t)
	eventually(t, "the first trust is there", func() bool { return g.count("/v1/trust") > 0 && g.relay.Reachable() })
	g.set(func() {
		g.root, g.decision = newSigningKey(t), newSigningKey(t)
		g.keyCerts = [][]byte{g.keyCert(trust.UseKEM, 2, g.kemKey()), g.keyCert(trust.UseDecision, 2, g.decision.public(t))}
		g.epoch = 2
	})
	p := g.phone(t, 100)
	p.challenge(protocol.Approve)
	p.finish(p.conn)
	if got := len(g.hookLog()); got != 0 {
		t.Errorf("%d acts under a root that the pinned one did not name", got)
	}
}
