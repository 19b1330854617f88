package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
)

// TestLinesWithoutAReader: writing does not wait for a reader, and the lines that were lost are counted.
func TestLinesWithoutAReader(t *testing.T) {
	for _, format := range []struct{ line, lost string }{
		{`{"@message":"` + strings.Repeat("x", 1000) + `"}`, `{"@level":"warn","@message":"log lines were lost: their reader is slow or gone","lines":%d}`},
		{strings.Repeat("x", 1000), "%d lines were lost: their reader is slow or gone"},
	} {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		l := NewLines(write)
		const written = 2 * maxQueued / 1000
		for range written {
			if n, err := l.Write([]byte(format.line + "\n")); n != len(format.line)+1 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
		all := make(chan []string)
		go func() {
			text, _ := io.ReadAll(read)
			all <- strings.Split(strings.TrimSpace(string(text)), "\n")
		}()
		for l.isFull(len(format.line) + 1) {
			runtime.Gosched()
		}
		_, _ = l.Write([]byte(format.line + "\n"))
		_ = l.Close()
		if _, err := l.Write([]byte("late\n")); err != nil {
			t.Error(err)
		}
		_ = write.Close()
		got, lost := 0, 0
		for _, line := range <-all {
			var n int
			if line == format.line {
				got++
			} else if _, err := fmt.Sscanf(line, format.lost, &n); err != nil {
				t.Errorf("read %q", line)
			}
			lost += n
		}
		if lost == 0 || got+lost != written+1 {
			t.Errorf("read %d lines, and %d were lost, of %d", got, lost, written+1)
		}
	}
}

// isFull reports whether one more line would be lost.
func (l *Lines) isFull(size int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size+size > maxQueued
}

// TestLinesClose: Close writes what is queued, and gives up on a stuck reader.
func TestLinesClose(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l := NewLines(write)
	_, _ = l.Write([]byte("last words\n"))
	_ = l.Close()
	_ = write.Close()
	if text, err := bufio.NewReader(read).ReadString('\n'); text != "last words\n" {
		t.Errorf("%q, %v", text, err)
	}
	stuck, _, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l = NewLines(blocked{stuck})
	_, _ = l.Write([]byte("unheard\n"))
	_ = l.Close() // returns
}

// blocked is a writer that waits until its pipe ends.
type blocked struct{ read *os.File }

func (b blocked) Write(p []byte) (int, error) { return b.read.Read(p) }
