package softhsmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/softhsm-test/harness"
)

// kinds are the words with which fenced blocks of the documents begin. Blocks of sh run; "sh device" runs on the device,
// and "sh new host" on the host after a disaster, both with the files that the document names. "sh needs: …" names
// something that the test does not have.
var kinds = []string{"sh", "sh device", "sh new host", "text", "toml"}

// needs counts the blocks that do not run, by what they need, so that no other is left out.
var needs = map[string]int{"the checkout": 3, "a database of an older release": 1}

// documents are the ones whose blocks run, each from top to bottom in one shell.
var documents = []string{"README.md", "docs/OPERATE.md", "docs/KEYS.md", "docs/HSM.md", "docs/RECOVERY.md"}

// installed are the documents that suppose the installation of OPERATE.md, its first block.
var installed = []string{"docs/KEYS.md", "docs/HSM.md"}

// block is a fenced block of a document.
type block struct {
	at   string // document and line
	kind string
	text string
}

// blocksOf returns the fenced blocks of a document.
func blocksOf(t *testing.T, document string) (all []block) {
	t.Helper()
	f, err := os.Open(filepath.Join("..", document))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // it is only read
	var open *block
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		switch kind, fence := strings.CutPrefix(lines.Text(), "```"); {
		case fence && open == nil:
			open = &block{at: fmt.Sprintf("%s:%d", document, n), kind: kind}
		case fence:
			all, open = append(all, *open), nil
		case open != nil:
			open.text += lines.Text() + "\n"
		}
	}
	if open != nil || lines.Err() != nil {
		t.Fatalf("%s: a block without an end, or %v", document, lines.Err())
	}
	return all
}

// TestDocuments runs the commands of the documents as they are written, with the programs installed elsewhere, in a
// directory that is not the checkout.
func TestDocuments(t *testing.T) {
	skipped := map[string]int{}
	bin := installPrograms(t)
	installation := blocksOf(t, "docs/OPERATE.md")[0]
	for _, document := range documents {
		var script strings.Builder
		if slices.Contains(installed, document) {
			script.WriteString(installation.text)
		}
		for _, b := range blocksOf(t, document) {
			what, without := strings.CutPrefix(b.kind, "sh needs: ")
			switch {
			case without:
				skipped[what]++
			case !slices.Contains(kinds, b.kind):
				t.Errorf("%s: a block of kind %q: want one of %q, or sh needs: …", b.at, b.kind, kinds)
			case b.kind == "sh device":
				fmt.Fprintf(&script, "echo '--- %s'; to_device\n%scd \"$WORK\"\n", b.at, b.text)
			case b.kind == "sh new host":
				fmt.Fprintf(&script, "echo '--- %s'; to_new_host\n%s", b.at, b.text)
			case b.kind == "sh":
				fmt.Fprintf(&script, "echo '--- %s'\n%s", b.at, b.text)
			}
		}
		t.Run(filepath.Base(document), func(t *testing.T) {
			t.Parallel()
			newDesk(t, bin).run(script.String())
		})
	}
	for what, n := range needs {
		if skipped[what] != n {
			t.Errorf("%d blocks need %s, want %d", skipped[what], what, n)
		}
	}
	for what := range skipped {
		if needs[what] == 0 {
			t.Errorf("a block needs %s", what)
		}
	}
}

// desk is the terminal of a person who follows a document.
type desk struct {
	*testing.T
	dir   string
	bin   string   // of the installed programs
	ports []string // old and new ones in turn: so that tests beside this one find theirs free
}

// newDesk prepares what a document supposes: installed programs, the sample configurations, and no token.
func newDesk(t *testing.T, bin string) *desk {
	d := &desk{T: t, dir: t.TempDir(), bin: bin}
	for _, port := range []string{":8443", ":9443", ":7443"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		d.ok(err)
		_, free, err := net.SplitHostPort(l.Addr().String())
		d.ok(errors.Join(err, l.Close()))
		d.ports = append(d.ports, port, ":"+free)
	}
	for _, name := range []string{"work", "device", "tokens", "tmp"} {
		d.ok(os.Mkdir(filepath.Join(d.dir, name), 0o700))
	}
	for from, to := range map[string]string{"config.toml": "work/config.toml", "internal/config/relay.toml": "device/relay.toml"} {
		text, err := os.ReadFile(filepath.Join("..", from))
		d.ok(err)
		d.write(to, d.moved(string(text)))
	}
	d.write("softhsm2.conf", "directories.tokendir = "+filepath.Join(d.dir, "tokens")+"\nobjectstore.backend = file\n")
	return d
}

func (d *desk) ok(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

// installPrograms copies the programs to a new directory: links would lead them back to the checkout.
func installPrograms(t *testing.T) (bin string) {
	t.Helper()
	bin = t.TempDir()
	for _, program := range harness.Programs {
		text, err := os.ReadFile(programs.Path(program))
		if err = errors.Join(err, os.WriteFile(filepath.Join(bin, program), text, 0o700)); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	return bin
}

func (d *desk) write(name, text string) {
	d.Helper()
	d.ok(os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600))
}

// moved replaces the ports in a text, and nothing else.
func (d *desk) moved(text string) string { return strings.NewReplacer(d.ports...).Replace(text) }

// prelude carries the CA and the code of gate-7 to the device. It runs countersignd serve and relayd serve in the
// background, as in another terminal, and waits until they are ready.
const prelude = `set -eu -o pipefail
until_ready() { until "$@" >ready.log 2>&1; do kill -0 $! || { cat ready.log; exit 1; }; sleep 0.05; done; }
to_device() {
	cp var/ca.pem "$DEVICE"
	(umask 077; jq -r .activation_code gate-7.json > "$DEVICE/code")
	cd "$DEVICE"
}
to_new_host() {
	if [ -e ../host ]; then return; fi
	kill $!
	wait $! || true
	mkdir ../host ../tokens/host
	cp -r config.toml custody *.backup *.sig anna.key root.line ../host
	cd ../host
	sed s,tokens,tokens/host, "$SOFTHSM2_CONF" > softhsm2.conf
	export SOFTHSM2_CONF=$PWD/softhsm2.conf
}
countersignd() {
	case $1 in
	serve) command countersignd "$@" & until_ready countersignctl status ;;
	dev) exec countersignd "$@" ;;
	*) command countersignd "$@" ;;
	esac
}
relayd() {
	case $1 in
	serve) command relayd "$@" & until_ready relayd status ;;
	*) command relayd "$@" ;;
	esac
}
export TMPDIR=$PWD/tmp WORK=$PWD/work DEVICE=$PWD/device SOFTHSM2_CONF=$PWD/softhsm2.conf
cd work
`

// question matches what the programs ask, and the name that they ask for.
var question = regexp.MustCompile(`\[y/N\] |Type (\S+) to continue: |(?i)(?:password|passphrase|repeat it|once more)[^\n:]*: `)

// answer returns what the person types.
func answer(asked string) string {
	switch found := question.FindStringSubmatch(asked); {
	case found[1] != "":
		return found[1]
	case strings.Contains(asked, "[y/N]"):
		return "y"
	default:
		return "seven random words of my own choice"
	}
}

// scriptLimit bounds the commands of one document.
const scriptLimit = 45 * time.Second

// run has a shell run the script on a terminal, answers its questions, and ends everything that it started.
func (d *desk) run(script string) {
	d.write("script", prelude+d.moved(script))
	user, program := openTerminal(d.T)
	ctx, cancel := context.WithTimeout(d.Context(), scriptLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "script")
	cmd.Dir, cmd.Env = d.dir, append(os.Environ(), "PATH="+d.bin+":"+os.Getenv("PATH"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	d.ok(cmd.Start())
	_ = program.Close() // the shell has it
	printed := make(chan string, 1)
	go func() { printed <- converse(user) }()
	err := cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // of the session; none may be left
	d.ok(harness.Until(d.Context(), "the end of all programs", func() (bool, error) {
		return errors.Is(syscall.Kill(-cmd.Process.Pid, 0), syscall.ESRCH), nil
	}))
	_ = user.Close() // it ends converse
	if text := <-printed; err != nil {
		d.Errorf("%v:\n%s", err, text)
	}
}

// converse answers the questions on a terminal until it is closed, and returns what was printed.
func converse(user *os.File) string {
	var all strings.Builder
	answered := 0 // so much of it
	buffer := make([]byte, 4096)
	for {
		n, err := user.Read(buffer)
		if err != nil {
			return all.String()
		}
		all.Write(buffer[:n])
		for at := question.FindStringIndex(all.String()[answered:]); at != nil; at = question.FindStringIndex(all.String()[answered:]) {
			asked := all.String()[answered+at[0] : answered+at[1]]
			_, _ = user.WriteString(answer(asked) + "\n") // its reader may be gone
			answered += at[1]
		}
	}
}

// openTerminal returns both ends of a pseudo-terminal.
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return user, program
}
