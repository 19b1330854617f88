package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/broken"
)

func edit(file, old, to string) broken.Edit { return broken.Edit{File: file, Old: old, New: to} }

// Files that are broken.
const (
	sealGo     = "appliance/store/seal.go"
	headGo     = "appliance/store/head/head.go"
	schemaGo   = "appliance/store/sqlite/schema.go"
	chainGo    = "appliance/keyring/chain/chain.go"
	keysGo     = "appliance/keyuse/keys.go"
	signedGo   = "appliance/recovery/backup/signed.go"
	answerGo   = "appliance/answer.go"
	evidenceGo = "appliance/evidence.go"
	behindGo   = "appliance/behind.go"
)

// unhung: what hangs on the head is not compared with it.
var unhung = []broken.Edit{
	edit(headGo, "err == nil && all.digest() != h.Digests[kind] {", "false && all.digest() != h.Digests[kind] {"),
	edit(headGo, "want != nil && want.digest() != m.Head.Digests[kind] {", "false && want != nil {"),
	edit(headGo, "if err == nil && version == h.Policy && sha256.Sum256(p.Document) != h.PolicyHash {", "if false {"),
}

// breaks are the values of BREAK, each with what it breaks.
var breaks = map[string][]broken.Edit{
	// Nothing that was written to the database is told from what the appliance wrote: no
	// seal, and no digest of seals.
	"seal": append([]broken.Edit{
		edit(sealGo, "func (s *Seals) Check(r Sealed, seal Seal) error {\n", "func (s *Seals) Check(r Sealed, seal Seal) error {\n\tif r != nil {\n\t\treturn nil\n\t}\n"),
	}, unhung...),
	// What is stored is signed, whatever it says, and a record is good whoever asked for it.
	"rebuild": {
		edit(answerGo, "if c.seen.code != 0 {", "if false {"),
		edit(
			answerGo, "if want.Result != out.Result || want.Reason != out.Reason || !bytes.Equal(d.Marshal(), out.Decision.Marshal()) {",
			"if d = out.Decision; false && !bytes.Equal(d.Marshal(), out.Decision.Marshal()) {",
		),
		edit(evidenceGo, "if err == nil && !cert.Doubtful && !cert.SameParty(i.keys) {", "if err = nil; false {"),
		edit(behindGo, "if b.change == (change.ID{}) {", "if b.fits != nil {\n\t\treturn nil\n\t}\n\tif b.change == (change.ID{}) {"),
	},
	// Foreign triggers, tables and columns are not looked for.
	"schema": {
		edit(schemaGo, "len(names) > 0 {\n\t\treturn v.seals.Report(", "false {\n\t\treturn v.seals.Report("),
		edit(schemaGo, "v.foreign || schema != v.cookie; v.foreign {", "v.foreign || schema != v.cookie; false {"),
	},
	// The root of the database, and of a backup, is believed.
	"root": {
		edit(chainGo, "func (p Pins) in(c chain) error {\n", "func (p Pins) in(c chain) error {\n\tif c.roots != nil {\n\t\treturn nil\n\t}\n"),
		edit(keysGo, "err = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)", "_ = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)"),
		edit(signedGo, "if !slices.ContainsFunc(roots, func(r trust.RootCert) bool { return r.Key == known.Root }) {", "if !slices.ContainsFunc(roots, func(r trust.RootCert) bool { return r.Key != known.Root || true }) {"),
	},
	// The head is not looked at: what is gone is not missed, and what is old is as good.
	"head": append([]broken.Edit{
		edit(headGo, "if !allows(floor, h) || h.MAC != store.ParseSeal(seal).Version {", "if false {"),
		edit(headGo, "if h.MAC < floor.MAC {", "if false {"),
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
	err = broken.Build(ctx, dir, rig.Bin(r.bin), breaks[r.broken],
		broken.Program{Package: "countersign/softhsm-test/hostile", Flags: "-X main.builtBroken=" + r.broken},
		broken.Program{Package: "countersign/cmd/countersignd"})
	if err != nil {
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
