package quorum

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/change"
	"countersign/appliance/store"
	"countersign/policy"
)

// Record describes a stored record that a change request made. The record names the
// request, and Verify checks the request's signatures again where the record is used: a
// seal shows that an appliance wrote the record, the signatures that administrators wanted
// it.
type Record struct {
	What   string
	Change change.ID                    // named by the record; zero: none
	Kinds  []policy.Kind                // of the request: one of these
	Fits   func(change.Parameters) bool // reports whether a request's parameters are the record's
	Free   bool                         // the record may have no request behind it
}

// recordOfAdmin: a migrated administrator has no request; the administrator who migrated
// has confirmed him.
func recordOfAdmin(one store.Admin) Record {
	return Record{
		What: "administrator " + one.Name, Change: one.Change, Kinds: []policy.Kind{policy.AdminAdd}, Free: true,
		Fits: func(p change.Parameters) bool {
			return p.Text("name") == one.Name && bytes.Equal(p.Bytes("public_key"), one.Key[:])
		},
	}
}

// Verify returns nil if enough administrators asked for a record. Otherwise it raises the
// alarm and returns an error that wraps [store.ErrForged].
func (j *Judge) Verify(ctx context.Context, r Record) error {
	if r.Change == (change.ID{}) {
		if r.Free {
			return nil
		}
		return j.report(r, "it names no change request")
	}
	row, err := j.store.Change(ctx, r.Change)
	if errors.Is(err, store.ErrNotFound) {
		return j.report(r, "there is no such change request")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.What, err)
	}
	return j.verifyRequest(ctx, row, r)
}

func (j *Judge) report(r Record, why string) error {
	return j.seals.Report(fmt.Sprintf("%s, change %s: %s", r.What, r.Change, why))
}

// verifyRequest checks the request behind a record: that it asks for this record, was
// taken, and has as many countersignatures as were required then. A signature still counts
// if its administrator was suspended or revoked since.
func (j *Judge) verifyRequest(ctx context.Context, row store.Change, r Record) error {
	request, err := change.Parse(row.Document)
	switch {
	case err != nil, row.ID != r.Change, change.HashOf(row.Document).ID() != r.Change:
		return j.report(r, "the request is another document")
	case request.Domain != j.domain:
		return j.report(r, "the request is of another appliance")
	case !slices.Contains(r.Kinds, request.Kind), !r.Fits(request.Parameters):
		return j.report(r, "the request asks for something else")
	case row.State != store.ChangeTaken && row.State != store.ChangeExecuted:
		return j.report(r, "the request is "+string(row.State))
	}
	content := contentOf(row)
	if _, good := j.good.Get(content); good {
		return nil
	}
	admins, err := j.store.ListAdmins(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", r.What, err)
	}
	signers := map[string]bool{}
	for _, s := range row.Signatures {
		if name := Signer(change.HashOf(row.Document), s, admins); slices.Contains(row.Signed, name) {
			signers[name] = true
		}
	}
	if len(signers) < max(row.Required, 1) {
		return j.report(r, fmt.Sprintf("the request has %d countersignatures that verify, and %d were required", len(signers), row.Required))
	}
	j.good.Put(content, struct{}{})
	return nil
}

// contentOf hashes a request with everything that its verification rests on.
func contentOf(row store.Change) [32]byte {
	sum := sha256.New()
	_ = binary.Write(sum, binary.BigEndian, []uint64{uint64(row.Required), uint64(len(row.Document)), uint64(len(row.Signed))}) // never fails, hash.Hash
	sum.Write(row.Document)
	for _, name := range row.Signed {
		one := sha256.Sum256([]byte(name))
		sum.Write(one[:])
	}
	for _, s := range row.Signatures {
		one := sha256.Sum256(append(slices.Clone(s.Signer[:]), s.Signature...))
		sum.Write(one[:])
	}
	return [32]byte(sum.Sum(nil))
}
