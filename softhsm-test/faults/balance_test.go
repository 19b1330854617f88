package faults

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
)

// audit compares the answers that phones and devices got with the records of the appliance and its
// relay: each serial was approved by one transaction, each is in the store and in the audit records
// once, and relays acted once on each of theirs and on nothing else.
func (s *stage) audit(ctx context.Context) {
	s.settled(ctx)
	approved := s.journal.approvals()
	twice, forRelay := doubles(approved)
	if harness.Break() == breakAct {
		s.actAgain()
	}
	s.Check(twice == 0, "serials approved by more than one transaction: %d of %d", twice, len(approved))
	tally, acted := s.tally(ctx, forRelay)
	decided := uint64(len(approved) + len(s.journal.denials()))
	s.Check(tally.Decisions == decided && tally.Audited == decided,
		"decisions answered %d, stored %d, audited %d", decided, tally.Decisions, tally.Audited)
	s.Check(acted == nil, "relay: %d approvals, %d acts%s", len(forRelay), tally.Acts, because(acted))
	s.Check(len(s.journal.bad) == 0, "signatures verified %d, bad ones or bad answers released %d%s",
		s.journal.verified, len(s.journal.bad), first(s.journal.bad))
}

// actAgain does once more what the relay has done first.
func (s *stage) actAgain() {
	raw := harness.Must(os.ReadFile(s.Hooklog))
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	harness.Do(os.WriteFile(s.Hooklog, append(append(raw, line...), '\n'), 0o600))
}

func first(all []error) string {
	if len(all) == 0 {
		return ""
	}
	return ": " + all[0].Error()
}

// doubles counts serials with two transactions, and gives the transactions that a
// relay acts on.
func doubles(approved []approval) (twice int, forRelay map[string]bool) {
	bySerial, forRelay := map[protocol.Serial]protocol.TransactionID{}, map[string]bool{}
	for _, a := range approved {
		if other, ok := bySerial[a.serial]; ok && other != a.transaction {
			twice++
		}
		bySerial[a.serial] = a.transaction
		if a.acts {
			forRelay[fmt.Sprint(a.transaction)] = true
		}
	}
	return twice, forRelay
}

// tally counts, once the relay has acted on all approvals. wrong is an error in its acts.
func (s *stage) tally(ctx context.Context, forRelay map[string]bool) (t harness.Tally, wrong error) {
	waited := harness.Until(ctx, "the acts of the relay", func() (bool, error) {
		acts, err := s.Acts()
		return len(acts) >= len(forRelay), err
	})
	acts := harness.Must(s.Acts())
	if wrong = waited; wrong == nil {
		wrong = judge(acts, forRelay)
	}
	return harness.Must(s.Tally(ctx)), wrong
}

func judge(acts []harness.Act, forRelay map[string]bool) error {
	seen := map[string]bool{}
	for _, act := range acts {
		if seen[act.Transaction] {
			return fmt.Errorf("%s was acted on twice", act.Transaction)
		}
		if seen[act.Transaction] = true; !forRelay[act.Transaction] {
			return fmt.Errorf("%s was acted on, and no phone knows of it", act.Transaction)
		}
	}
	return nil
}
