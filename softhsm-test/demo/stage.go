package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

type config struct {
	bin    string
	broken string // what to break, "" for nothing
	out    io.Writer
}

// stage is the appliance with its relay, the attacker between it and the phones,
// and the phones.
type stage struct {
	config
	*harness.Appliance
	dir   string
	wire  *link.Proxy
	wrong []string // of the scene that plays

	machines map[string]string // names of further devices, by link
	franks   string            // serial of frank's payment, which waits
}

func open(ctx context.Context, c config) (*stage, error) {
	bin, err := harness.Find(c.bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "countersign-demo-")
	if err != nil {
		return nil, err
	}
	s := &stage{config: c, dir: dir, machines: map[string]string{}}
	if s.Appliance, err = harness.Start(ctx, harness.Config{Bin: bin, Dir: filepath.Join(dir, "dev")}); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if s.wire, err = link.NewProxy(s.Link); err != nil {
		return nil, errors.Join(err, s.Kill(), os.RemoveAll(dir))
	}
	s.say("Countersign: a phone without a network authorizes with its signature, and an appliance")
	s.say("whose keys never leave a PKCS#11 token decides. Running: countersignd, 2 hsm-worker on a")
	s.say("SoftHSM token, relayd as the door and the till; between phone and relay, an attacker.")
	return s, nil
}

// close stops everything, gently, and removes the directory.
func (s *stage) close() error {
	err := s.wire.Close()
	took, stopErr := s.Stop()
	s.say("")
	s.say("stopped by SIGTERM in %v", took.Round(1e6))
	return errors.Join(err, stopErr, os.RemoveAll(s.dir))
}

// scene is one thing that happens, and what is to be counted after it.
type scene struct {
	title string
	story []string
	play  func(*stage, context.Context) error
	want  harness.Tally // more than before
}

// play plays every scene and counts those that went as expected.
func (s *stage) play(ctx context.Context) (good int) {
	for i, sc := range scenes {
		s.say("")
		s.say("%d. %s", i+1, sc.title)
		for _, line := range sc.story {
			s.say("   %s", line)
		}
		s.wrong = nil
		s.wire.Reset()
		if err := s.counted(ctx, sc); err != nil {
			s.blame("%v", err)
		}
		for _, w := range s.wrong {
			s.say("   NOT AS EXPECTED: %s", w)
		}
		if len(s.wrong) == 0 {
			good++
			s.say("   as expected: %s", words(sc.want))
		}
	}
	return good
}

// counted plays a scene between two counts.
func (s *stage) counted(ctx context.Context, sc scene) error {
	before, err := s.Tally(ctx)
	if err != nil {
		return err
	}
	if err := sc.play(s, ctx); err != nil {
		return err
	}
	after, err := s.Tally(ctx)
	if err != nil {
		return err
	}
	if want := before.Plus(sc.want); after != want {
		s.blame("counted %s; wanted %s", words(minus(after, before)), words(sc.want))
	}
	return nil
}

func minus(a, b harness.Tally) harness.Tally {
	return harness.Tally{
		Clients: a.Clients - b.Clients, Devices: a.Devices - b.Devices, Decisions: a.Decisions - b.Decisions,
		Audited: a.Audited - b.Audited, Refused: a.Refused - b.Refused, Acts: a.Acts - b.Acts,
	}
}

func words(t harness.Tally) string {
	var parts []string
	for _, p := range []struct {
		n    uint64
		what string
	}{{t.Clients, "phones enrolled"}, {t.Devices, "devices enrolled"}, {t.Decisions, "decisions stored"}, {t.Audited, "decisions audited"}, {t.Refused, "attempts audited"}, {t.Acts, "acts in the hook log"}} {
		if p.n != 0 {
			parts = append(parts, fmt.Sprintf("%s: %d", p.what, int64(p.n)))
		}
	}
	if parts == nil {
		return "nothing stored, nothing done"
	}
	return strings.Join(parts, ", ")
}

func (s *stage) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// blame notes what is not as expected.
func (s *stage) blame(format string, args ...any) {
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
}

// demand notes it unless ok.
func (s *stage) demand(ok bool, format string, args ...any) {
	if !ok {
		s.blame(format, args...)
	}
}
