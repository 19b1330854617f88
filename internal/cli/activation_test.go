package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// The sources of an activation code. Only the argument, which other users see, has a warning.
func TestCode(t *testing.T) {
	private, public := filepath.Join(t.TempDir(), "code"), filepath.Join(t.TempDir(), "public")
	for path, mode := range map[string]os.FileMode{private: 0o600, public: 0o644} {
		if err := os.WriteFile(path, []byte("OA1-FILE\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		args    []string
		stdin   string
		want    string
		code    int
		warning bool
	}{
		"argument":           {args: []string{"OA1-ARG"}, stdin: "OA1-IN\n", want: "OA1-ARG", warning: true},
		"dash":               {args: []string{"-"}, stdin: " OA1-IN \nmore\n", want: "OA1-IN"},
		"standard input":     {stdin: "OA1-IN", want: "OA1-IN"},
		"nothing":            {code: 2},
		"dash, nothing":      {args: []string{"-"}, stdin: "", code: 2},
		"file":               {args: []string{"--code-file", private}, stdin: "OA1-IN\n", want: "OA1-FILE"},
		"file of all":        {args: []string{"--code-file", public}, code: 77},
		"file is not there":  {args: []string{"--code-file", private + "x"}, code: 77},
		"file and argument":  {args: []string{"--code-file", private, "OA1-ARG"}, code: 2},
		"two arguments":      {args: []string{"A", "B"}, code: 2},
		"flags before it":    {args: []string{"--url", "u", "OA1-ARG"}, want: "OA1-ARG", warning: true},
		"endless input":      {stdin: strings.Repeat("x", 1<<20), want: strings.Repeat("x", maxCode)},
		"a line and no more": {stdin: "OA1-IN\nthe password\n", want: "OA1-IN"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			cmd := &cobra.Command{Use: "enrol"}
			code := AddCodeFlag(cmd)
			cmd.Flags().String("url", "", "")
			cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
				got, err = code.Read(cmd, args)
				return err
			}
			var stdout, stderr bytes.Buffer
			in := strings.NewReader(c.stdin)
			exit := Main(t.Context(), cmd, Process{Args: c.args, Stdin: in, Stdout: &stdout, Stderr: &stderr})
			if exit != c.code || got != c.want {
				t.Errorf("exit code %d, %q; want %d, %q: %s", exit, got, c.code, c.want, stderr.String())
			}
			if warned := strings.Contains(stderr.String(), "warning:"); warned != c.warning || strings.Contains(stderr.String(), "OA1-") {
				t.Errorf("standard error: %q", stderr.String())
			}
			if name == "a line and no more" && in.Len() != len("the password\n") {
				t.Errorf("%d bytes are left", in.Len())
			}
		})
	}
}
