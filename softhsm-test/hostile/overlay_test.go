package hostile

import (
	"countersign/softhsm-test/harness"
)

func edit(file, old, to string) harness.Edit { return harness.Edit{File: file, Old: old, New: to} }

// Files that are broken.
const (
	sealGo     = "appliance/store/seal.go"
	hangingGo  = "appliance/store/sqlite/hanging.go"
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
var unhung = []harness.Edit{
	edit(hangingGo, "err == nil && found != h.Digests[kind] {", "false && found != h.Digests[kind] {"),
	edit(hangingGo, "want != nil && want.digest() != h.Digests[kind] {", "false && want != nil {"),
	edit(registryGo, "if err == nil && p.Version == h.Policy && hashOf(p.Document) != h.PolicyHash {", "if false {"),
}

// breaks are the values of BREAK, each with what it breaks.
var breaks = map[string][]harness.Edit{
	// Nothing that was written to the database is told from what the appliance wrote: no
	// seal, and no digest of seals.
	"seal": append([]harness.Edit{
		edit(sealGo, "func (s *Seals) Check(r Sealed, seal Seal) error {\n", "func (s *Seals) Check(r Sealed, seal Seal) error {\n\tif r != nil {\n\t\treturn nil\n\t}\n"),
	}, unhung...),
	// A stored decision is signed without being rebuilt, and a record is valid without its change
	// request.
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
		edit(chainGo, "err = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)", "_ = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)"),
		edit(signedGo, "if !slices.ContainsFunc(roots, func(r protocol.RootCert) bool { return r.Key == known.Root }) {", "if !slices.ContainsFunc(roots, func(r protocol.RootCert) bool { return r.Key != known.Root || true }) {"),
	},
	// The head is not checked: missing and old records are not noticed.
	"head": append([]harness.Edit{
		edit(vaultGo, "if !floor.Allows(h) || h.MAC != store.ParseSeal(seal).Version {", "if false {"),
		edit(schemaGo, "case h.MAC < floor.MAC:", "case false && h.MAC < floor.MAC:"),
	}, unhung...),
}
