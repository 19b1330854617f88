package recovery

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"countersign/appliance/parties"
	"countersign/appliance/store"
)

// mostMade bounds how many backups wait for the word of the peer that got them.
const mostMade = 64

// Kept is what became of a backup at the peer that got it.
type Kept struct {
	SHA256  [32]byte // of the file
	Problem string   // why there is no file; "" if there is one
}

// Keep records what became of a backup that this process made. The appliance itself knows only that it was sent. It
// returns [store.ErrNotFound] for any other file, and for one whose end is recorded.
func (s *Service) Keep(ctx context.Context, k Kept) error {
	kind, known := s.made.Get(k.SHA256)
	if !known {
		return fmt.Errorf("backup with SHA-256 %s: %w", hex.EncodeToString(k.SHA256[:]), store.ErrNotFound)
	}
	fields := map[string]any{"event": "kept", "sha256": k.SHA256[:]}
	if k.Problem != "" {
		fields["event"], fields["problem"] = "not kept", k.Problem
	}
	if err := s.store.Append(ctx, parties.Record(ctx, kind, "backup", fields)); err != nil {
		return fmt.Errorf("recording what became of a backup: %w", err)
	}
	s.made.Delete(k.SHA256)
	return nil
}

// record writes that a backup was made, before it is sent. Keep writes what became of it.
func (s *Service) record(ctx context.Context, kind string, sum [32]byte, fields map[string]any) error {
	fields["event"], fields["sha256"] = "made", sum[:]
	if err := s.store.Append(ctx, parties.Record(ctx, kind, "backup", fields)); err != nil {
		return fmt.Errorf("recording a backup: %w", err)
	}
	s.made.Put(sum, kind)
	return nil
}

// sent records that a backup was not sent, and returns err, the error of sending it. A dry run has nothing to record.
func (s *Service) sent(ctx context.Context, sum [32]byte, err error) error {
	if _, made := s.made.Get(sum); err == nil || !made {
		return err
	}
	lost := s.Keep(context.WithoutCancel(ctx), Kept{SHA256: sum, Problem: fmt.Sprintf("it was not sent: %v", err)})
	return errors.Join(err, lost)
}
