package enrol_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/enrol"
	"countersign/appliance/store"
)

// mostSlower is how much longer an invitation may take beside many requests that have ended. If the
// store read them all, it would take more than ten times as long.
const mostSlower = 3

// TestInviteBesideEnded measures invitations, by turns in an appliance without change requests that
// have ended and in one with 10,000 of them.
func TestInviteBesideEnded(t *testing.T) {
	if testing.Short() {
		t.Skip("a measurement")
	}
	const ended, invitations = 10_000, 60
	empty, full := appliancetest.New(t), appliancetest.New(t)
	full.Code(store.KindClient, "first")
	full.Tamper(ended, `WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
		INSERT INTO change (id, document, state, reason, created_us, expires_us, ended_us, required, signed, seal)
		SELECT randomblob(8), document, state, reason, created_us, expires_us, ended_us, required, signed, seal
		FROM (SELECT * FROM change LIMIT 1), n`, ended)
	full.Tamper(ended, `INSERT INTO change_signature (change, signer, signature, at_us)
		SELECT c.ref, zeroblob(8), NULL, c.created_us FROM change c WHERE NOT EXISTS (SELECT 1 FROM change_signature s WHERE s.change = c.ref)`)
	took := map[*appliancetest.Bench][]time.Duration{}
	for i := range invitations {
		for _, b := range []*appliancetest.Bench{empty, full} {
			start := time.Now()
			if _, _, err := b.Enrol.Invite(t.Context(), enrol.Invite{Kind: store.KindClient, Name: fmt.Sprintf("phone-%d", i)}); err != nil {
				t.Fatal(err)
			}
			took[b] = append(took[b], time.Since(start))
		}
	}
	median := func(b *appliancetest.Bench) time.Duration {
		slices.Sort(took[b])
		return took[b][len(took[b])/2]
	}
	ratio := float64(median(full)) / float64(median(empty))
	t.Logf("median of %d invitations: %v in an empty store, %v with %d requests that have ended, ratio %.2f", invitations, median(empty), median(full), ended, ratio)
	if ratio > mostSlower {
		t.Errorf("an invitation takes %.1f times as long beside %d requests that have ended", ratio, ended)
	}
}
