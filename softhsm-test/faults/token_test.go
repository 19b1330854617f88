package faults

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"countersign/softhsm-test/harness"
)

// keepToken makes SoftHSM keep its token as an HSM does. At each C_Login SoftHSM truncates
// token.object and then writes the same bytes again, so that a process killed in between leaves an
// empty token for good. Until stop is called, a file that stays empty is written again; stop says
// how often.
func (s *stage) keepToken(ctx context.Context) (stop func() error) {
	files, err := filepath.Glob(filepath.Join(s.state(), "token", "*", "token.object"))
	if err != nil || len(files) != 1 {
		harness.Fail("looking for token.object: %d files: %w", len(files), err)
		return nil
	}
	whole, err := os.ReadFile(files[0])
	if err != nil || len(whole) == 0 {
		harness.Do(errors.Join(err, errors.New("token.object is empty to begin with")))
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	k := keeper{path: files[0], whole: whole}
	go func() { done <- k.keep(ctx) }()
	return func() error {
		cancel()
		err := <-done
		if k.mended != 0 {
			s.Say("SoftHSM lost its token %d times to a kill in C_Login; it was put back", k.mended)
		}
		return err
	}
}

type keeper struct {
	path   string
	whole  []byte
	mended int
}

// keep looks twice before it writes: a C_Login under way has the file empty too.
func (k *keeper) keep(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for wasEmpty := false; ; {
		info, err := os.Stat(k.path)
		if err != nil {
			return err
		}
		empty := info.Size() == 0
		if empty && wasEmpty {
			if err := os.WriteFile(k.path, k.whole, 0o600); err != nil {
				return err
			}
			k.mended++
		}
		wasEmpty = empty
		if ctx.Err() != nil && !empty {
			return nil
		}
		<-tick.C
	}
}
