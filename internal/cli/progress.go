package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Progress says on standard error that a slow command works. On a terminal it keeps one line, with the step and the
// time that is left, and removes it at the end; elsewhere it writes one line at the beginning.
type Progress struct {
	out   io.Writer
	end   time.Time
	stop  chan struct{}
	ended sync.WaitGroup

	mu   sync.Mutex // guards step, and writing
	step string
}

// StartProgress begins to report a command that takes about so long. The caller calls [Progress.End].
func StartProgress(out io.Writer, what string, takes time.Duration) *Progress {
	p := &Progress{out: out, end: time.Now().Add(takes), stop: make(chan struct{}), step: what}
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(out, "%s: takes about %s\n", printable(what), takes.Round(time.Second))
		close(p.stop)
		p.out = io.Discard
		return p
	}
	p.write()
	p.ended.Go(p.tick)
	return p
}

// Step names what the command does now.
func (p *Progress) Step(what string) {
	p.mu.Lock()
	p.step = what
	p.mu.Unlock()
	p.write()
}

// End removes the line from the terminal.
func (p *Progress) End() {
	if p.out == io.Discard {
		return
	}
	close(p.stop)
	p.ended.Wait()
	fmt.Fprint(p.out, "\r\x1b[K")
}

func (p *Progress) tick() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-ticker.C:
			p.write()
		}
	}
}

func (p *Progress) write() {
	p.mu.Lock()
	defer p.mu.Unlock()
	left := "a moment"
	if d := time.Until(p.end).Round(time.Second); d > 0 {
		left = d.String()
	}
	fmt.Fprintf(p.out, "\r\x1b[K%s, about %s left", printable(p.step), left)
}
