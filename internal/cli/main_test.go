package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"countersign/internal/fault"
)

// foreign is an error of another package that chooses its exit code.
type foreign struct{ code int }

func (f foreign) Error() string { return "foreign" }
func (f foreign) ExitCode() int { return f.code }
func (f foreign) Hint() string  { return "do this" }

// failing gives err an exit code and a hint.
func failing(code fault.Code, err error, hint string) error {
	return fault.Row{Exit: code, Advice: hint}.Of(err)
}

// tree is a command with what the real ones have: a noun, verbs, arguments and
// a required flag.
func tree(runE func(*cobra.Command, []string) error) *cobra.Command {
	root := &cobra.Command{Use: "ctl"}
	noun := &cobra.Command{Use: "client"}
	list := &cobra.Command{Use: "list", Args: cobra.NoArgs, RunE: runE}
	invite := &cobra.Command{Use: "invite NAME", Args: cobra.ExactArgs(1), RunE: runE}
	invite.Flags().Int("days", 1, "validity")
	revoke := &cobra.Command{Use: "revoke", RunE: runE}
	revoke.Flags().String("expect", "", "hash")
	if err := revoke.MarkFlagRequired("expect"); err != nil {
		panic(err)
	}
	hello := &cobra.Command{Use: "hello", Run: func(c *cobra.Command, _ []string) { fmt.Fprintln(c.OutOrStdout(), "hello") }}
	noun.AddCommand(list, invite, revoke)
	root.AddCommand(noun, hello)
	return root
}

type result struct {
	code           int
	stdout, stderr string
}

func run(cmd *cobra.Command, args ...string) result {
	var out, errs bytes.Buffer
	code := Main(context.Background(), cmd, Process{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs})
	return result{code, out.String(), errs.String()}
}

func TestMainErrors(t *testing.T) {
	exit9 := exec.Command("sh", "-c", "exit 9").Run()
	for _, tc := range []struct {
		name string
		err  error
		want result
	}{
		{"none", nil, result{0, "", ""}},
		{"plain", errors.New("opening: gone"), result{1, "", "error: opening: gone\n"}},
		{"with code and hint", failing(fault.NotFound, errors.New("no client anna"), "see ctl client list"), result{5, "", "error: no client anna\nhint: see ctl client list\n"}},
		{"wrapped", fmt.Errorf("serving: %w", failing(fault.Unavailable, errors.New("token gone"), "")), result{69, "", "error: serving: token gone\n"}},
		{"outermost wins", failing(fault.Config, failing(fault.Auth, errors.New("x"), "inner"), "outer"), result{78, "", "error: x\nhint: outer\n"}},
		{"of another package", fmt.Errorf("loading: %w", foreign{77}), result{77, "", "error: loading: foreign\nhint: do this\n"}},
		{"an error never succeeds", foreign{0}, result{1, "", "error: foreign\nhint: do this\n"}},
		{"code out of range", foreign{256}, result{1, "", "error: foreign\nhint: do this\n"}},
		{"a child's code is not ours", exit9, result{1, "", "error: exit status 9\n"}},
		{"several lines", errors.New("a:1: x\na:2: y\n"), result{1, "", "error: a:1: x\nerror: a:2: y\n"}},
		{"control characters", errors.New("client \x1b[2Jx\u009b\r"), result{1, "", "error: client \\u001b[2Jx\\u009b\n"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := run(tree(func(*cobra.Command, []string) error { return tc.err }), "client", "list")
			if got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestMainUsage(t *testing.T) {
	unreachable := func(*cobra.Command, []string) error { return errors.New("ran") }
	for _, tc := range []struct{ args, stderr string }{
		{"", "error: ctl needs a command\nhint: one of: client, completion, hello\n"},
		{"client", "error: ctl client needs a command\nhint: one of: invite, list, revoke\n"},
		{"clinet", "error: unknown command \"clinet\" for ctl\nhint: did you mean client?\n"},
		{"client inivte anna", "error: unknown command \"inivte\" for ctl client\nhint: did you mean invite?\n"},
		{"client zzzzzz", "error: unknown command \"zzzzzz\" for ctl client\nhint: one of: invite, list, revoke\n"},
		{"client invite", "error: accepts 1 arg(s), received 0\nhint: see ctl client invite --help\n"},
		{"client list extra", "error: unknown command \"extra\" for \"ctl client list\"\nhint: see ctl client list --help\n"},
		{"client list --nope", "error: unknown flag: --nope\nhint: see ctl client list --help\n"},
		{"client invite anna --days soon", "error: invalid argument \"soon\" for \"--days\" flag: strconv.ParseInt: parsing \"soon\": invalid syntax\nhint: see ctl client invite --help\n"},
		{"client revoke", "error: required flag(s) \"expect\" not set\nhint: see ctl client revoke --help\n"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			want := result{2, "", tc.stderr}
			if got := run(tree(unreachable), strings.Fields(tc.args)...); got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestMainSucceeds(t *testing.T) {
	if got := run(tree(nil), "hello"); got != (result{0, "hello\n", ""}) {
		t.Errorf("hello: %+v", got)
	}
	got := run(tree(nil), "client", "--help")
	if got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, "invite") {
		t.Errorf("help: %+v", got)
	}
	if got := run(tree(nil), "completion", "bash"); got.code != 0 || !strings.Contains(got.stdout, "ctl") {
		t.Errorf("completion: exit code %d", got.code)
	}
}

func TestMainPassesContextAndInput(t *testing.T) {
	type key struct{}
	ctx := context.WithValue(context.Background(), key{}, "value")
	var out bytes.Buffer
	cmd := tree(func(c *cobra.Command, args []string) error {
		ok, err := TerminalOf(c).Confirm("Invite " + args[0] + "?")
		fmt.Fprintln(c.OutOrStdout(), ok, c.Context().Value(key{}))
		return err
	})
	var errs bytes.Buffer
	code := Main(ctx, cmd, Process{Args: []string{"client", "invite", "anna"}, Stdin: strings.NewReader("y\n"), Stdout: &out, Stderr: &errs})
	if code != 0 || out.String() != "true value\n" || errs.String() != "Invite anna? [y/N] " {
		t.Errorf("code %d, stdout %q, stderr %q", code, out.String(), errs.String())
	}
}

// TestVersion: --version prints a line, or JSON where -o asks for it, and nothing else runs.
func TestVersion(t *testing.T) {
	unused := func(*cobra.Command, []string) error { t.Error("the command ran"); return nil }
	if r := run(tree(unused), "--version"); r.code != 0 || !strings.HasPrefix(r.stdout, "ctl unknown, go1.") || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	root := tree(unused)
	AddOutputFlag(root)
	if r := run(root, "--version", "-o", "json"); r.code != 0 || !strings.Contains(r.stdout, `"program": "ctl"`) {
		t.Errorf("%+v", r)
	}
	if r := run(tree(unused), "--version", "client"); r.code != 2 {
		t.Errorf("%+v", r)
	}
}
