package softhsmtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"countersign/softhsm-test/harness"
)

// section returns the lines of a help text below a title, up to the next empty line.
func section(help, title string) (lines []string) {
	_, rest, found := strings.Cut(help, title+":\n")
	for line := range strings.Lines(rest) {
		if !found || strings.TrimSpace(line) == "" {
			break
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

// examples returns the examples of a command and those below it.
func examples(t *testing.T, command ...string) (all []string) {
	t.Helper()
	r, err := programs.Run(t.Context(), harness.Call{Program: command[0], Args: append(slices.Clone(command[1:]), "--help")})
	if err != nil || r.Code != 0 {
		t.Fatalf("%v --help: %v, exit code %d: %s", command, err, r.Code, r.Stderr)
	}
	all = section(r.Stdout, "Examples")
	for _, line := range section(r.Stdout, "Available Commands") {
		if name, _, _ := strings.Cut(line, " "); name != "help" && name != "completion" {
			all = append(all, examples(t, append(slices.Clone(command), name)...)...)
		}
	}
	return all
}

// places prepares what each example supposes: a code that was just invited, a state directory, an enrolled phone.
const places = `password='seven random words of my own choice'
code() { (umask 077; countersignctl --admin "unix:$WORK/var/admin.sock" "$1" invite "$2" -o json | jq -r .activation_code > code; echo "$password" > password); }
place() {
	cd "$(mktemp -d)"
	case $1 in
	"countersign-client enrol") export HOME=$PWD; code client "phone-$2" ;;
	countersign-client*) cd "$phone"; export HOME=$phone ;;
	"relayd enrol") cp "$DEVICE/relay.toml" "$DEVICE/ca.pem" .; code device "device-$2" ;;
	*) cd "$WORK" ;;
	esac
}
place "countersign-client enrol" first
phone=$PWD
countersign-client enrol --url https://localhost:8443 --code-file code --password-file password
countersign-client authorize --link tcp:127.0.0.1:7443 --service door.open=100 --yes
`

// TestExamples runs every example of every --help as it is written.
func TestExamples(t *testing.T) {
	t.Parallel()
	var script strings.Builder
	for _, b := range blocksOf(t, "docs/OPERATE.md") {
		switch b.kind {
		case "sh":
			script.WriteString(b.text)
		case "sh device":
			fmt.Fprintf(&script, "to_device\n%scd \"$WORK\"\n%s", b.text, places)
		}
		if b.kind == "sh device" {
			break // an appliance and a device serve now
		}
	}
	found := 0
	for _, program := range []string{"countersignd", "countersignctl", "relayd", "countersign-client"} {
		for _, example := range examples(t, program) {
			found++
			words := strings.Fields(example)
			fmt.Fprintf(&script, "echo '--- %d'; place '%s %s' %d\n%s\n", found, words[0], words[1], found, example)
		}
	}
	if found < 7 {
		t.Errorf("found %d examples only", found)
	}
	newDesk(t, installPrograms(t)).run(script.String())
}
