package softhsmtest

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/protocol"
)

// TestSecrets looks for canaries where they must not be: the PIN, activation codes,
// and, in what operators see, who the clients are.
func TestSecrets(t *testing.T) {
	b := newBench(t)
	open := must[string](t)(b.Invite(t.Context(), "client", "carol"))
	p := b.phone("alice")
	wantResult(t, b.authorize(p, p.Next(100)), protocol.P4{Result: protocol.ResultApproved})
	wantLinkError(t, b.ask([]byte{0x11, 1, 2}), protocol.CodeFormat)
	pin := strings.TrimSpace(string(must[[]byte](t)(os.ReadFile(filepath.Join(b.Config.Dir, "pin")))))
	soPIN := strings.TrimSpace(string(must[[]byte](t)(os.ReadFile(filepath.Join(b.Config.Dir, "so-pin")))))
	code := open[strings.LastIndexByte(open, '-')+1:] // the secret part
	res := must[*http.Response](t)(http.Get(b.Ops + "/metrics"))
	metrics := string(must[[]byte](t)(io.ReadAll(res.Body)))
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(metrics, "countersign_") {
		t.Errorf("metrics: %.200s", metrics)
	}
	for place, text := range map[string]string{"log": b.Appliance.Log(), "metrics": metrics} {
		for what, secret := range map[string]string{"PIN": pin, "SO PIN": soPIN, "activation code": code, "client id": p.ID.String()} {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in the %s", what, place)
			}
		}
	}
	b.scan(map[string]string{"PIN": pin, "SO PIN": soPIN, "activation code": code})
}

// scan looks into every file but those of the PINs, and at who may read them.
func (b *bench) scan(secrets map[string]string) {
	b.Helper()
	err := filepath.WalkDir(b.Config.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			b.Errorf("%s has mode %04o", path, mode)
		}
		if name := entry.Name(); !entry.Type().IsRegular() || name == "pin" || name == "so-pin" {
			return nil
		}
		raw, err := os.ReadFile(path)
		for what, secret := range secrets {
			if bytes.Contains(raw, []byte(secret)) {
				b.Errorf("%s is in %s", what, path)
			}
		}
		return err
	})
	if err != nil {
		b.Error(err)
	}
}
