package softhsmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/rogpeppe/go-internal/testscript"

	"countersign/appliance/anchor"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/pool"
	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
	"countersign/softhsm-test/shim"
)

// TestScripts runs the *.txtar beside this file. Beyond testscript's own they have
// these commands:
//
//	dev [MODULE [SECOND]]   start `countersignd dev` in $WORK/dev, called dev; sets URL API CA LINK ADMIN OPS HOOKLOG
//	daemon NAME PROGRAM …   start a program in the background
//	logged NAME RE [VAR …]  wait until the log of a daemon matches; sets each VAR to a group
//	waitfor http URL CODE   wait until a GET is answered so
//	waitfor json URL MEMBER VALUE  … and its JSON has that member
//	waitfor stdout RE PROGRAM  … until a program prints so
//	waitfor end NAME CODE   wait until a daemon has ended with an exit code
//	halt NAME               SIGTERM; it ends within 2 s with exit code 0
//	kill9 NAME              kill -9, and wait until nothing it started remains
//	killchildren NAME PROGRAM COUNT  kill -9 so many of its children
//	exits CODE PROGRAM …    run a program, which ends with exactly that code
//	member VAR NAME         set VAR to a member of the JSON on standard output
//	lines FILE COUNT        a file has so many lines
//	expand FILE             put environment variables into a file
//	sql FILE STATEMENT      change a store that is not open
//	retire DIR NAME …       retire every version of keys in a store that is not open
//	older DIR               the stopped store of dev as a release before the seals would have it
//	proxy LINK              an attacker in front of a link, who does nothing yet; sets WIRE
//	cut m3|m4               … and who cuts the link in place of forwarding the next one
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: ".", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"dev": cmdDev, "daemon": cmdDaemon, "logged": cmdLogged, "waitfor": cmdWaitfor, "halt": cmdHalt, "kill9": cmdKill9,
			"killchildren": cmdKillChildren, "exits": cmdExits, "member": cmdMember, "lines": cmdLines, "expand": cmdExpand,
			"proxy": cmdProxy, "cut": cmdCut, "sql": cmdSQL, "retire": cmdRetire,
			"older": cmdOlder,
		},
	})
}

// daemons of one script, by name.
type daemons map[string]*harness.Daemon

type daemonsKey struct{}

// attacker is the newest proxy of one script.
type attacker struct{ *link.Proxy }

type attackerKey struct{}

func setup(e *testscript.Env) error {
	e.Setenv("PATH", string(programs)+":"+os.Getenv("PATH"))
	e.Setenv("SPY", spyModule())
	e.Setenv("SHIM", shimModule())
	fixtures, err := filepath.Abs("testdata")
	if err != nil {
		return err
	}
	e.Setenv("FIXTURES", fixtures)
	all := daemons{}
	e.Values[daemonsKey{}] = all
	mallory := &attacker{}
	e.Values[attackerKey{}] = mallory
	e.Defer(func() {
		if mallory.Proxy != nil {
			_ = mallory.Close() // the script is over; its own failure is what counts
		}
		for _, d := range all {
			if d.Running() {
				_ = d.Kill() // the script is over; its own failure is what counts
			}
		}
	})
	return nil
}

// spyModule is where Debian puts OpenSC's pkcs11-spy: a directory of the machine's
// architecture.
func spyModule() string {
	found, err := filepath.Glob("/usr/lib/*/pkcs11-spy.so")
	if err != nil || len(found) == 0 {
		return "pkcs11-spy.so not found: install opensc"
	}
	return found[0]
}

// shimModule is the fault shim, which the Makefile builds.
func shimModule() string {
	path, err := filepath.Abs(filepath.Join("..", "bin", shim.Library))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "the fault shim is not built: make bin/faultshim.so"
	}
	return path
}

func of(ts *testscript.TestScript) daemons { return ts.Value(daemonsKey{}).(daemons) }

func named(ts *testscript.TestScript, name string) *harness.Daemon {
	d, ok := of(ts)[name]
	if !ok {
		ts.Fatalf("no daemon is called %q", name)
	}
	return d
}

// need ends the script at a command with fewer arguments than it must have, or
// negated.
func need(ts *testscript.TestScript, neg bool, args []string, usage string) {
	if neg || len(args) < len(strings.Fields(usage)) {
		ts.Fatalf("usage: %s", usage)
	}
}

// environment is what the script's variables say for the programs it starts.
func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"SOFTHSM2_CONF", "PKCS11SPY", "PKCS11SPY_OUTPUT"} {
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func cmdDev(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "")
	c := harness.Config{Bin: programs, Dir: ts.MkAbs("dev"), Env: environment(ts)}
	if len(args) > 0 {
		c.Module = args[0]
	}
	if len(args) > 1 {
		c.SecondModule = args[1]
	}
	a, err := harness.Start(context.Background(), c)
	ts.Check(err)
	of(ts)["dev"] = a.Daemon
	for name, value := range map[string]string{
		"URL": a.URL, "CA": a.CA, "LINK": a.Link, "ADMIN": a.Admin, "OPS": a.Ops, "HOOKLOG": a.Hooklog,
		"API": strings.TrimPrefix(a.URL, "https://"),
	} {
		ts.Setenv(name, value)
	}
}

func cmdDaemon(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "NAME PROGRAM")
	d, err := programs.Start(harness.Call{Program: args[1], Args: args[2:], Dir: ts.MkAbs("."), Env: environment(ts)})
	ts.Check(err)
	of(ts)[args[0]] = d
}

func cmdLogged(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "NAME RE")
	d, pattern := named(ts, args[0]), regexp.MustCompile(args[1])
	var groups []string
	err := harness.Until(context.Background(), "the log to match "+args[1], func() (bool, error) {
		groups = pattern.FindStringSubmatch(d.Log())
		if groups == nil && !d.Running() {
			return false, fmt.Errorf("%s ended: %s", args[0], d.Log())
		}
		return groups != nil, nil
	})
	if err != nil {
		ts.Fatalf("%v: %s", err, d.Log())
	}
	for i, name := range args[2:] {
		ts.Setenv(name, groups[i+1])
	}
}

func cmdWaitfor(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "WHAT WHERE VALUE")
	switch args[0] {
	case "http":
		ts.Check(harness.Until(context.Background(), args[1]+" to answer "+args[2], func() (bool, error) {
			status, _ := get(args[1]) // not there yet is not so
			return strconv.Itoa(status) == args[2], nil
		}))
	case "json":
		need(ts, neg, args, "json URL MEMBER VALUE")
		ts.Check(harness.Until(context.Background(), args[1]+" to have "+args[2], func() (bool, error) {
			_, members := get(args[1])
			return fmt.Sprint(members[args[2]]) == args[3], nil
		}))
	case "stdout":
		need(ts, neg, args, "stdout RE PROGRAM")
		call := harness.Call{Program: args[2], Args: args[3:], Dir: ts.MkAbs("."), Env: environment(ts)}
		ts.Check(harness.Until(context.Background(), args[2]+" to print "+args[1], func() (bool, error) {
			r, err := programs.Run(context.Background(), call)
			return regexp.MustCompile(args[1]).MatchString(r.Stdout), err
		}))
	case "end":
		code, err := named(ts, args[1]).Wait(context.Background())
		ts.Check(err)
		if strconv.Itoa(code) != args[2] {
			ts.Fatalf("exit code %d: %s", code, named(ts, args[1]).Log())
		}
	default:
		ts.Fatalf("usage: waitfor http|json|stdout|end …")
	}
}

func get(url string) (status int, members map[string]any) {
	res, err := http.Get(url)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = res.Body.Close() }() // only this much of it is wanted
	if json.NewDecoder(res.Body).Decode(&members) != nil {
		return res.StatusCode, nil
	}
	return res.StatusCode, members
}

func cmdHalt(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "NAME")
	_, err := named(ts, args[0]).Stop()
	ts.Check(err)
}

func cmdKill9(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "NAME")
	d := named(ts, args[0])
	children, err := d.Children()
	ts.Check(err)
	if len(children) == 0 {
		ts.Fatalf("%s has no children", args[0])
	}
	ts.Check(d.Kill())
	for _, c := range children {
		ts.Check(c.Wait(context.Background()))
	}
}

func cmdKillChildren(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "NAME PROGRAM COUNT")
	children, err := named(ts, args[0]).Children()
	ts.Check(err)
	children = slices.DeleteFunc(children, func(p harness.Process) bool { return p.Name != args[1] })
	if strconv.Itoa(len(children)) != args[2] {
		ts.Fatalf("%d children are %s", len(children), args[1])
	}
	for _, c := range children {
		ts.Check(c.Kill())
	}
	for _, c := range children {
		ts.Check(c.Wait(context.Background()))
	}
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "CODE PROGRAM")
	r, err := programs.Run(context.Background(), harness.Call{Program: args[1], Args: args[2:], Dir: ts.MkAbs("."), Env: environment(ts)})
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), r.Stdout)
	fmt.Fprint(ts.Stderr(), r.Stderr)
	if strconv.Itoa(r.Code) != args[0] {
		ts.Fatalf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
}

func cmdMember(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "VAR NAME")
	var members map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &members))
	value, ok := members[args[1]]
	if !ok {
		ts.Fatalf("no member %q", args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(value))
}

func cmdLines(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "FILE COUNT")
	if n := strings.Count(ts.ReadFile(args[0]), "\n"); strconv.Itoa(n) != args[1] {
		ts.Fatalf("%s has %d lines: %s", args[0], n, ts.ReadFile(args[0]))
	}
}

func cmdExpand(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "FILE")
	path := ts.MkAbs(args[0])
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(filepath.Clean(path), []byte(text), 0o600))
}

func cmdSQL(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "sql FILE")
	ts.Check(execSQL(context.Background(), ts.MkAbs(args[0]), args[1]))
}

func cmdProxy(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "LINK")
	mallory := ts.Value(attackerKey{}).(*attacker)
	if mallory.Proxy != nil {
		mallory.Retarget(args[0])
		return
	}
	proxy, err := link.NewProxy(args[0])
	ts.Check(err)
	mallory.Proxy = proxy
	ts.Setenv("WIRE", proxy.Link())
}

func cmdCut(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "MESSAGE")
	kind, ok := map[string]byte{"m3": message.KindM3, "m4": message.KindM4}[args[0]]
	if !ok {
		ts.Fatalf("usage: cut m3|m4")
	}
	ts.Value(attackerKey{}).(*attacker).Next(link.Rule{Kind: kind, Action: link.Cut})
}

// offlineEnv makes the test binary run one command on a store that is not open, and nothing else.
// It is a process of its own because the token's module reads SOFTHSM2_CONF of its process.
const offlineEnv = "COUNTERSIGN_TEST_OFFLINE"

// cmdRetire retires every version of some keys in a store that is not open, as the passing of time
// would. No command does that.
func cmdRetire(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "DIR NAME")
	offline(ts, environment(ts), append([]string{"retire"}, args...)...)
}

// offline runs a command in a process of its own, in the directory of the script.
func offline(ts *testscript.TestScript, env []string, args ...string) {
	bin, err := filepath.Abs(string(programs))
	ts.Check(err)
	cmd := exec.Command(os.Args[0])
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(append(os.Environ(), env...), offlineEnv+"="+strings.Join(args, " "), "COUNTERSIGN_BIN="+bin)
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("%v: %v: %s", args, err, out)
	}
}

// offlineIfAsked is the whole of the process that offline starts.
func offlineIfAsked() (code int, asked bool) {
	words := strings.Fields(os.Getenv(offlineEnv))
	if len(words) < 2 {
		return 0, false
	}
	var err error
	switch dir := words[1]; words[0] {
	case "retire":
		err = retire(dir, words[2:]...)
	case "older":
		err = older(dir, words[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// openToken opens a SoftHSM token that no other process has open.
func openToken(ctx context.Context, label, pinFile string) (*pool.Pool, error) {
	pin, err := os.ReadFile(pinFile)
	if err != nil {
		return nil, err
	}
	return pool.Open(ctx, pool.Config{
		Binary: programs.Path("hsm-worker"), Module: "/usr/lib/softhsm/libsofthsm2.so", TokenLabel: label,
		PIN: hsm.PIN(strings.TrimSpace(string(pin))), Workers: 1, Logger: hclog.NewNullLogger(),
	})
}

// retire does the work of cmdRetire, for a token called countersign whose PIN is in ./pin.
func retire(dir string, names ...string) error {
	ctx := context.Background()
	token, err := openToken(ctx, "countersign", "pin")
	if err != nil {
		return err
	}
	defer token.Close()
	file, err := anchor.Open(filepath.Join(dir, "anchor"))
	if err != nil {
		return err
	}
	s, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(dir, "countersign.db"), Existing: true})
	if err != nil {
		return err
	}
	err = keyuse.Unseal(ctx, token, s, store.NewSeals(nil), keyuse.Pins{Anchor: file})
	if err == nil {
		err = retireAll(ctx, s, names)
	}
	return errors.Join(err, s.Close())
}

func retireAll(ctx context.Context, s store.Keys, names []string) error {
	keys, err := s.ListKeys(ctx)
	if err != nil {
		return err
	}
	var c store.KeyChange
	for _, k := range keys {
		for _, name := range names {
			if k.Name == name {
				k.RetiredAt, k.Revision = time.Now(), k.Revision+1
				c.Update = append(c.Update, k)
			}
		}
	}
	return s.ChangeKeys(ctx, c, audit.NewRecord(audit.KindKeys, "key/test", map[string]any{"event": "retired"}))
}
