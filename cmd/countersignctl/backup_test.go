package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"countersign/appliance/adminapi"
	"countersign/internal/fault"
)

// backups answers as an appliance does that makes backups with this content, and notes what it is told of them.
// meanwhile is called when one is fetched.
func backups(t *testing.T, content string, meanwhile func()) (address string, told *[]adminapi.Kept) {
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
			meanwhile()
			_ = json.NewEncoder(w).Encode(adminapi.KeyBackup{SHA256: text, File: []byte(content)})
		default:
			meanwhile()
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
		dir, fetched := t.TempDir(), 0
		taken := filepath.Join(dir, "taken")
		address, told := backups(t, "a backup", func() {
			if fetched++; fetched == 2 { // a directory of this name lets a file be written, and not be put in place
				if err := os.Mkdir(taken, 0o700); err != nil {
					t.Error(err)
				}
			}
		})
		if code, _, stderr := run(t, address, noun, "backup", "--out", filepath.Join(dir, "file")); code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, %q", noun, code, stderr)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "a backup" {
			t.Errorf("%s: %q, %v", noun, got, err)
		}
		if code, _, _ := run(t, address, noun, "backup", "--out", taken); code != int(fault.IO) {
			t.Errorf("%s: exit code %d, want 74", noun, code)
		}
		if len(*told) != 2 || len((*told)[0].SHA256) != 64 || (*told)[0].Problem != "" || !strings.Contains((*told)[1].Problem, "taken") {
			t.Errorf("%s: told %+v", noun, *told)
		}
	}
}

// TestBackupToNoFile: what a file cannot replace, or must not, is refused before an approval is spent.
func TestBackupToNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(
		os.Mkdir(filepath.Join(dir, "directory"), 0o700), os.Mkdir(filepath.Join(dir, "copy.sig"), 0o700),
		syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600), os.Symlink("/dev/null", filepath.Join(dir, "device")),
	); err != nil {
		t.Fatal(err)
	}
	address, told := backups(t, "a backup", func() { t.Error("it was fetched") })
	for _, args := range [][]string{
		{"key", "directory"},
		{"key", "directory/"},
		{"key", "pipe"},
		{"key", "device"},
		{"key", strings.Repeat("x", 250)},
		{"store", "directory"},
		{"store", "pipe"},
		{"store", "copy"},
		{"store", strings.Repeat("x", 250)},
	} {
		code, _, stderr := run(t, address, args[0], "backup", "--out", dir+"/"+args[1])
		if code != int(fault.IO) || !strings.Contains(stderr, args[1]) || !strings.Contains(stderr, "hint: name a file") {
			t.Errorf("%s: exit code %d, %s", args, code, stderr)
		}
	}
	if len(*told) != 0 {
		t.Errorf("told %+v", *told)
	}
	if info, err := os.Lstat(filepath.Join(dir, "pipe")); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("the pipe was replaced: %v", err)
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
