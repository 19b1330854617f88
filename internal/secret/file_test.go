package secret

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// described is a file's information with an owner, a group and a mode.
type described struct {
	fs.FileInfo
	uid, gid uint32
	mode     os.FileMode
}

func (d described) Mode() os.FileMode { return d.mode }
func (d described) Sys() any          { return &syscall.Stat_t{Uid: d.uid, Gid: d.gid} }

// TestPrivate: every mode, for each owner and group that makes a difference.
func TestPrivate(t *testing.T) {
	self, group := uint32(os.Geteuid()), uint32(os.Getegid())
	const other, foreign = 4242, 4243
	for mode := range os.FileMode(0o1000) {
		onlyOwner, groupReads := mode&0o077 == 0, mode&0o037 == 0
		for _, tc := range []struct {
			uid, gid uint32
			want     bool
		}{
			{self, foreign, onlyOwner},
			{0, foreign, onlyOwner},
			{0, group, groupReads},
			{other, group, false},
			{other, foreign, false},
		} {
			row, err := private("pin", described{uid: tc.uid, gid: tc.gid, mode: mode})
			if (err == nil) != tc.want || (err == nil) != (row.Advice == "") {
				t.Errorf("mode %04o, owner %d, group %d: %v, advice %q", mode, tc.uid, tc.gid, err, row.Advice)
			}
		}
	}
	for _, tc := range []struct {
		uid, gid uint32
		mode     os.FileMode
		want     string
	}{
		{other, foreign, 0o600, "chown"},
		{0, foreign, 0o440, "fsGroup"},
	} {
		row, err := private("pin", described{uid: tc.uid, gid: tc.gid, mode: tc.mode})
		if tc.uid == self && tc.uid == 0 {
			tc.want = "chmod 600" // root runs the test
		}
		if err == nil || !strings.Contains(row.Advice, tc.want) {
			t.Errorf("owner %d, mode %04o: %v, advice %q", tc.uid, tc.mode, err, row.Advice)
		}
	}
}

// TestReadFileInherited: the shell's <(command) is a descriptor of this process.
func TestReadFileInherited(t *testing.T) {
	if os.Getenv("SECRET_TEST_INHERITED") != "" {
		line, err := ReadFile("/dev/fd/3")
		if err != nil || string(line) != "1234" {
			t.Errorf("%q, %v", []byte(line), err)
		}
		return
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := write.WriteString("1234\n"); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	again := exec.Command(os.Args[0], "-test.run=^TestReadFileInherited$")
	again.Env, again.ExtraFiles = append(os.Environ(), "SECRET_TEST_INHERITED=1"), []*os.File{read}
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(fifo); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("FIFO: %v", err)
	}
}
