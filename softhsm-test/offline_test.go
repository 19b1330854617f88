package softhsmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
)

// offlineEnv makes the test binary carry out a command on a store that nobody has open,
// and nothing else: a process of its own, since the token's module reads SOFTHSM2_CONF of
// its process.
const offlineEnv = "COUNTERSIGN_TEST_OFFLINE"

// cmdRetire retires every version of some keys in a store that nobody has open, as time
// would have done: no command does that.
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
