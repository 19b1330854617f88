package adminapi

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"countersign/appliance/adminapi/problem"
)

// answering returns a caller of a server with one handler.
func answering(t *testing.T, h http.HandlerFunc) *Caller {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h} //nolint:gosec // a test
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return NewCaller(path)
}

// TestTable: every route has a method and a path, and no two are the same.
func TestTable(t *testing.T) {
	seen := map[string]string{}
	table := reflect.ValueOf(Routes)
	for i := range table.NumField() {
		name := table.Type().Field(i).Name
		pattern := table.Field(i).Interface().(interface{ Pattern() string }).Pattern()
		method, path, _ := strings.Cut(pattern, " ")
		if method != http.MethodGet && method != http.MethodPost || len(path) <= len(Prefix) || !strings.HasPrefix(path, Prefix) {
			t.Errorf("%s: pattern %q", name, pattern)
		}
		if other, twice := seen[pattern]; twice {
			t.Errorf("%s and %s have pattern %q", name, other, pattern)
		}
		seen[pattern] = name
	}
}

func TestCall(t *testing.T) {
	var method, uri, body string
	c := answering(t, func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		method, uri, body = r.Method, r.RequestURI, string(raw)
		_, _ = io.WriteString(w, `[{"name":"first"}]`)
	})
	tokens, err := Routes.HSMUnlock.With("token", "a b").Call(t.Context(), c, []byte("12\x0034"))
	if err != nil || len(tokens) != 1 || method != "POST" || uri != Prefix+"hsm/unlock?token=a+b" || body != "12\x0034" {
		t.Errorf("%s %s %q, %+v, %v", method, uri, body, tokens, err)
	}
	if _, err := Routes.KeyRotate.Call(t.Context(), c, KeyStep{DryRun: true}, "../a/b?c"); err != nil {
		t.Fatal(err)
	}
	if uri != Prefix+"key/..%2Fa%2Fb%3Fc/rotate" || body != `{"dry_run":true}` {
		t.Errorf("%s %q", uri, body)
	}
	if _, err := Routes.HSMStatus.Call(t.Context(), c, None{}); err != nil || method != "GET" || body != "" {
		t.Errorf("%s %q, %v", method, body, err)
	}
	if _, err := Routes.Status.Call(t.Context(), c, None{}); err == nil {
		t.Error("an array was read as a status")
	}
}

func TestCallFails(t *testing.T) {
	answer := Problem{Type: problem.Exists, Status: http.StatusConflict, Detail: "there already"}
	c := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(answer.Status)
		_ = json.NewEncoder(w).Encode(answer)
	})
	_, err := Routes.ClientInvite.Call(t.Context(), c, Invite{}, "alice")
	var e *Error
	if !errors.As(err, &e) || e.Type != problem.Exists || e.Names[0] != "alice" || err.Error() != "there already" {
		t.Errorf("%v, %+v", err, e)
	}
	answer.Type = "" // of another server
	if _, err := Routes.Status.Call(t.Context(), c, None{}); err == nil || errors.As(err, new(*Error)) || !strings.Contains(err.Error(), "409") {
		t.Errorf("%v", err)
	}
	if _, _, err := c.CopyStore(t.Context(), Routes.StoreBackup); err == nil {
		t.Error("a problem was read as a database")
	}
	gone := NewCaller(filepath.Join(t.TempDir(), "none.sock"))
	var dial *net.OpError
	if _, err := Routes.Status.Call(t.Context(), gone, None{}); !errors.Is(err, ErrUnanswered) || !errors.As(err, &dial) {
		t.Errorf("%v", err)
	}
}

// TestCopyWithoutDescription: a database whose description is missing is an error.
func TestCopyWithoutDescription(t *testing.T) {
	c := answering(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "database") })
	if _, _, err := c.CopyStore(t.Context(), Routes.StoreBackup); err == nil {
		t.Error("it was accepted")
	}
}
