package main

import (
	"strings"
	"testing"

	"countersign/appliance/adminapi/problem"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/keyplan"
	"countersign/appliance/parties"
	"countersign/appliance/recovery"
	"countersign/appliance/store"
	"countersign/hsm"
)

// TestProblemRows: the row of each kind of answer has the words that the appliance answers with.
func TestProblemRows(t *testing.T) {
	for _, c := range []struct {
		kind string
		err  error
	}{
		{problem.KeyStep, keyplan.ErrStep},
		{problem.KeyStep, keyplan.ErrEarly},
		{problem.KeyStep, keyplan.ErrRootAway},
		{problem.Unsupported, hsm.ErrUnsupported},
		{problem.Quorum, requests.ErrQuorum},
		{problem.Over, requests.ErrOver},
		{problem.Signer, requests.ErrSigner},
		{problem.Signature, change.ErrSignature},
		{problem.Uncovered, recovery.ErrUncovered},
		{problem.Exists, store.ErrExists},
		{problem.Conflict, store.ErrConflict},
		{problem.Conflict, parties.ErrFinal},
		{problem.Input, parties.ErrInput},
		{problem.PIN, hsm.ErrPIN},
		{problem.Store, store.ErrUnavailable},
		{problem.Unavailable, hsm.ErrUnavailable},
	} {
		if row := problems[c.kind]; !strings.Contains(row.Text, c.err.Error()) {
			t.Errorf("the row %q describes the answer %q", row.Text, c.err)
		}
	}
}
