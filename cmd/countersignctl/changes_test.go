package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/policy"
)

// serving returns the address of an admin socket with a handler.
func serving(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h} //nolint:gosec // a test
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return "unix:" + socket
}

// answering returns the address of an appliance that answers every question with one request.
func answering(t *testing.T, c adminapi.Change) string {
	return serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			t.Errorf("%s %s: a signature was handed in", r.Method, r.URL.Path)
		}
		_ = json.NewEncoder(w).Encode(c)
	})
}

func request(name string) []byte {
	return change.Request{
		Version: 1, Kind: policy.KeyDestroy, Parameters: change.Parameters{"name": name, "version": uint64(1)},
		Domain: "example.org", By: "local", Created: 1790000000, Expires: 1790000060,
	}.Marshal()
}

// run runs countersignctl.
func run(t *testing.T, address string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	p := cli.Process{Args: append([]string{"--admin", address}, args...), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs}
	return cli.Main(t.Context(), root(), p), out.String(), errs.String()
}

// TestSignsWhatItReads: an appliance that shows one thing and sends another gets no signature. The command shows the
// contents of the bytes.
func TestSignsWhatItReads(t *testing.T) {
	key := filepath.Join(t.TempDir(), "ann.pem")
	if code, _, stderr := run(t, "unix:/none", "admin", "keygen", "--out", key); code != 0 {
		t.Fatal(stderr)
	}
	asked := request("decision")
	id := change.HashOf(asked).ID().String()
	for name, document := range map[string][]byte{"another request": request("kem"), "no request": []byte("x"), "nothing": nil} {
		lie := adminapi.Change{ID: id, Hash: change.HashOf(asked).String(), Kind: "key.destroy", Document: document}
		code, stdout, stderr := run(t, answering(t, lie), "change", "sign", id, "--key", key, "--yes")
		if code != int(fault.BadSignature) || stdout != "" || strings.Contains(stderr, "name =") {
			t.Errorf("%s: exit code %d, %q, %q", name, code, stdout, stderr)
		}
	}
	lie := adminapi.Change{ID: id, Kind: "device.invite", Parameters: map[string]any{"name": "gate-7"}, Document: asked}
	code, stdout, stderr := run(t, answering(t, lie), "change", "sign", id, "--key", key, "--dry-run")
	if code != 0 || stdout != "" || !strings.Contains(stderr, "kind     key.destroy") || !strings.Contains(stderr, "name = decision") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestReadKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ann.pem")
	public, err := writeKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := readKey(path); err != nil || k.public != public {
		t.Errorf("public key %s, want %s: %v", k.public, public, err)
	}
	if point, err := readPublic(path, ""); err != nil || point != public.String() {
		t.Errorf("public key %s, want %s: %v", point, public, err)
	}
	if _, err := writeKey(path); err == nil {
		t.Error("a key was overwritten")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a test
		t.Fatal(err)
	}
	if _, err := readKey(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := readKey(path); err == nil {
		t.Error("a key that others can read was used")
	}
}

func TestParseURI(t *testing.T) {
	want := tokenURI{token: "my token", object: "ann", id: "\x01\xff", module: "/x.so"}
	if u, err := parseURI("pkcs11:token=my%20token;object=ann;type=private;id=%01%ff?module-path=/x.so"); err != nil || u != want {
		t.Errorf("%+v, %v", u, err)
	}
	for _, bad := range []string{
		"", "token=a;object=b", "pkcs11:object=b", "pkcs11:token=a", "pkcs11:token=a;token=b;object=c",
		"pkcs11:token=a;object=b;slot-id=3", "pkcs11:token=%zz;object=b", "pkcs11:token=a;object=b;type=public",
	} {
		if u, err := parseURI(bad); err == nil {
			t.Errorf("%q was read as %+v", bad, u)
		}
	}
}
