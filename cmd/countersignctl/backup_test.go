package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/appliance/adminapi"
	"countersign/internal/fault"
)

// backups answers as an appliance does that makes backups with this content, and notes what it is told of them.
func backups(t *testing.T, content string) (address string, told *[]adminapi.Kept) {
	t.Helper()
	told = &[]adminapi.Kept{}
	sum := sha256.Sum256([]byte(content))
	text := hex.EncodeToString(sum[:])
	return serving(t, func(w http.ResponseWriter, r *http.Request) {
		switch noun, verb, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, adminapi.Prefix), "/backup"); {
		case verb == "/kept":
			var kept adminapi.Kept
			_ = json.NewDecoder(r.Body).Decode(&kept)
			*told = append(*told, kept)
			_, _ = w.Write([]byte("{}"))
		case noun == "key":
			_ = json.NewEncoder(w).Encode(adminapi.KeyBackup{SHA256: text, File: []byte(content)})
		default:
			about, _ := json.Marshal(adminapi.StoreCopy{Size: int64(len(content)), SHA256: text, Statement: []byte("signed")})
			w.Header().Set(adminapi.HeaderCopy, string(about))
			_, _ = w.Write([]byte(content))
		}
	}), told
}

// TestReportsWhatBecameOfABackup: the appliance is told of each backup whether it is in its file. A file that cannot be
// written exits with 74.
func TestReportsWhatBecameOfABackup(t *testing.T) {
	for _, noun := range []string{"key", "store"} {
		address, told := backups(t, "a backup")
		dir := t.TempDir()
		if code, _, stderr := run(t, address, noun, "backup", "--out", filepath.Join(dir, "file")); code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, %q", noun, code, stderr)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "a backup" {
			t.Errorf("%s: %q, %v", noun, got, err)
		}
		taken := filepath.Join(dir, "taken") // a directory of this name lets a file be written, and not be put in place
		if err := os.Mkdir(taken, 0o700); err != nil {
			t.Fatal(err)
		}
		if code, _, _ := run(t, address, noun, "backup", "--out", taken); code != int(fault.IO) {
			t.Errorf("%s: exit code %d, want 74", noun, code)
		}
		if len(*told) != 2 || len((*told)[0].SHA256) != 64 || (*told)[0].Problem != "" || !strings.Contains((*told)[1].Problem, "taken") {
			t.Errorf("%s: told %+v", noun, *told)
		}
	}
}

// TestDryBackup: a dry run shows no hash of a file that does not exist, and needs no file.
func TestDryBackup(t *testing.T) {
	address := serving(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(adminapi.KeyBackup{Keys: []string{"mac@1"}})
	})
	out := filepath.Join(t.TempDir(), "nowhere", "file")
	code, stdout, stderr := run(t, address, "key", "backup", "--dry-run", "--out", out)
	if code != 0 || strings.Contains(stdout, "0000") || !strings.Contains(stdout, "SHA-256:         -") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	if code, _, stderr = run(t, address, "key", "backup", "--dry-run"); code != 0 {
		t.Errorf("without --out: exit code %d, %q", code, stderr)
	}
	if code, _, stderr = run(t, address, "key", "backup"); code != int(fault.Usage) || !strings.Contains(stderr, "--out") {
		t.Errorf("a backup without --out: exit code %d, %q", code, stderr)
	}
}
