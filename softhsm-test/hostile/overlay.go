package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"countersign/softhsm-test/rig"
)

// edit replaces one text of the product, which must be there exactly once.
type edit struct {
	file     string // from the root of the repository
	old, new string
}

// Files that are broken.
const (
	sealGo     = "appliance/store/seal.go"
	vaultGo    = "appliance/store/sqlite/vault.go"
	schemaGo   = "appliance/store/sqlite/schema.go"
	registryGo = "appliance/store/sqlite/registry.go"
	chainGo    = "appliance/keyring/chain.go"
	signedGo   = "appliance/backup/signed.go"
	answerGo   = "appliance/answer.go"
	evidenceGo = "appliance/evidence.go"
	behindGo   = "appliance/behind.go"
)

// unhung: what hangs on the head is not compared with it.
var unhung = []edit{
	{vaultGo, "if err == nil && found != h.Digests[kind] {", "if false && found != h.Digests[kind] {"},
	{registryGo, "if err == nil && r.Version == h.Policy && hashOf(r.Document) != h.PolicyHash {", "if false {"},
}

// breaks are the values of BREAK, each with what it breaks.
var breaks = map[string][]edit{
	// Nothing that was written to the database is told from what the appliance wrote: no
	// seal, and no digest of seals.
	"seal": append([]edit{
		{sealGo, "func (s *Seals) Check(r Sealed, seal Seal) error {\n", "func (s *Seals) Check(r Sealed, seal Seal) error {\n\tif r != nil {\n\t\treturn nil\n\t}\n"},
	}, unhung...),
	// What is stored is signed, whatever it says, and a record is good whoever asked for it.
	"rebuild": {
		{answerGo, "if c.seen.code != 0 {", "if false {"},
		{
			answerGo, "if want.Result != out.Result || want.Reason != out.Reason || !bytes.Equal(d.Marshal(), out.Decision.Marshal()) {",
			"if d = out.Decision; false && !bytes.Equal(d.Marshal(), out.Decision.Marshal()) {",
		},
		{evidenceGo, "if err == nil && !cert.Doubtful && !cert.SameParty(i.keys) {", "if err = nil; false {"},
		{behindGo, "if b.change == (change.ID{}) {", "if b.fits != nil {\n\t\treturn nil\n\t}\n\tif b.change == (change.ID{}) {"},
	},
	// Foreign triggers, tables and columns are not looked for.
	"schema": {
		{schemaGo, "if names := foreign(found, want); len(names) > 0 {", "if names := foreign(found, want); false {"},
		{schemaGo, "if now != v.schema {", "if false {"},
	},
	// The root of the database, and of a backup, is believed.
	"root": {
		{chainGo, "func (p Pins) in(c chain) error {\n", "func (p Pins) in(c chain) error {\n\tif c.roots != nil {\n\t\treturn nil\n\t}\n"},
		{chainGo, "err = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)", "_ = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)"},
		{signedGo, "if !slices.ContainsFunc(roots, func(r protocol.RootCert) bool { return r.Key == known.Root }) {", "if !slices.ContainsFunc(roots, func(r protocol.RootCert) bool { return r.Key != known.Root || true }) {"},
	},
	// The head is not looked at: what is gone is not missed, and what is old is as good.
	"head": append([]edit{
		{vaultGo, "if h.Revision < floor || h.MAC != store.ParseSeal(seal).Version {", "if false {"},
		{schemaGo, "case h.MAC < mac:", "case false && h.MAC < mac:"},
	}, unhung...),
}

// builtBroken is what this program was built with; the linker sets it.
var builtBroken string

func names() (all string) {
	for _, name := range slices.Sorted(maps.Keys(breaks)) {
		all += " " + name
	}
	return all
}

// rebuilding is what it takes to build this program and countersignd with a break.
type rebuilding struct {
	config
	args   []string
	broken string
	stderr io.Writer
}

// rebuild builds both and runs the one in place of this. Its exit code is the answer.
func rebuild(ctx context.Context, r rebuilding) int {
	dir, err := os.MkdirTemp("", "countersign-broken-")
	if err != nil {
		fmt.Fprintf(r.stderr, "error: %v\n", err)
		return exitFailed
	}
	defer func() { _ = os.RemoveAll(dir) }() // at worst it stays in the temporary directory
	if err := r.build(ctx, dir); err != nil {
		fmt.Fprintf(r.stderr, "error: BREAK=%s: %v\n", r.broken, err)
		return exitUsage
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "hostile"), r.args...)
	cmd.Env = append(os.Environ(), "COUNTERSIGN_BIN="+dir)
	cmd.Stdout, cmd.Stderr = r.out, r.stderr
	if err = cmd.Run(); err == nil {
		return exitOK
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		fmt.Fprintf(r.stderr, "error: %v\n", err)
	}
	return exitFailed
}

// build puts the broken programs, and the others as they are, into dir.
func (r rebuilding) build(ctx context.Context, dir string) error {
	overlay, err := writeOverlay(ctx, dir, breaks[r.broken])
	if err != nil {
		return err
	}
	for _, b := range []struct{ program, flags string }{
		{"countersign/softhsm-test/hostile", "-X main.builtBroken=" + r.broken}, {"countersign/cmd/countersignd", ""},
	} {
		args := []string{"build", "-overlay", overlay, "-ldflags", b.flags, "-o", dir + "/", b.program}
		if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w: %s", b.program, err, out)
		}
	}
	bin, err := filepath.Abs(r.bin)
	for _, p := range rig.Programs {
		if p != "countersignd" {
			err = errors.Join(err, os.Symlink(filepath.Join(bin, p), filepath.Join(dir, p)))
		}
	}
	return err
}

// writeOverlay writes the edited files and the list of them that `go build` reads.
func writeOverlay(ctx context.Context, dir string, edits []edit) (string, error) {
	if len(edits) == 0 {
		return "", errors.New("the product has nothing yet that it could break")
	}
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	replace := map[string]string{}
	for i, e := range edits {
		path := filepath.Join(root, e.file)
		to, ok := replace[path]
		if !ok {
			to = filepath.Join(dir, fmt.Sprintf("broken-%d.go", i))
			if err := copyText(to, path); err != nil {
				return "", err
			}
			replace[path] = to
		}
		if err := e.apply(to); err != nil {
			return "", err
		}
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	return list, os.WriteFile(list, raw, 0o600)
}

func copyText(to, from string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}

func (e edit) apply(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n := bytes.Count(text, []byte(e.old)); n != 1 {
		return fmt.Errorf("%s has %q %d times, want once", e.file, e.old, n)
	}
	return os.WriteFile(path, bytes.Replace(text, []byte(e.old), []byte(e.new), 1), 0o600)
}
