package relay

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
)

// maxHookLine bounds a line that is logged of a hook's output, in bytes. The rest of the line is dropped.
const maxHookLine = 1 << 10

// runLogged runs a program to its end, and logs each line of its standard error. The program also inherits the reading
// end of that pipe, so that its writes do not fail when the relay has ended.
func runLogged(cmd *exec.Cmd, log hclog.Logger) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stderr, cmd.ExtraFiles = write, []*os.File{read}
	err = cmd.Start()
	_ = write.Close() // nothing is buffered
	if err != nil {
		_ = read.Close() // nothing was written
		return err
	}
	go logLines(read, log)
	return cmd.Wait()
}

// logLines logs what is written until every writer has ended: the hook, and what it left in the background.
func logLines(read *os.File, log hclog.Logger) {
	defer func() { _ = read.Close() }() // it was read to its end
	lines := bufio.NewReaderSize(read, maxHookLine)
	for {
		line, isPrefix, err := lines.ReadLine()
		if err != nil {
			return
		}
		log.Info("hook wrote", "line", string(line))
		for isPrefix && err == nil {
			_, isPrefix, err = lines.ReadLine()
		}
	}
}

// Check returns an error if the program cannot be started: it is missing or not executable, or its interpreter is. It
// runs nothing.
func (h Hook) Check() error {
	if len(h.Command) == 0 {
		return nil
	}
	path, err := exec.LookPath(h.Command[0])
	if err == nil {
		err = startable(path)
	}
	if err != nil {
		return fmt.Errorf("hook: %w", err)
	}
	return nil
}

// maxShebang is how much of a file Linux looks at to find the interpreter, in bytes (BINPRM_BUF_SIZE).
const maxShebang = 256

// startable looks at the beginning of a program, as the kernel does.
func startable(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrPermission) {
		return nil // a program may be executable and not readable
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	start := make([]byte, maxShebang)
	n, err := io.ReadFull(f, start)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: %w", path, err)
	}
	start = start[:n]
	line, isScript := bytes.CutPrefix(start, []byte("#!"))
	switch {
	case isScript:
		return interpreter(path, line)
	case bytes.HasPrefix(start, []byte(elf.ELFMAG)):
		return loader(path, f)
	case bytes.ContainsFunc(start, isBinary): // perhaps another kind that the kernel can start (binfmt_misc)
		return nil
	}
	return fmt.Errorf("%s is a text file whose first line does not name an interpreter: want #!/bin/sh", path)
}

func isBinary(r rune) bool { return r == utf8.RuneError || unicode.IsControl(r) && !unicode.IsSpace(r) }

// interpreter checks the interpreter of a script, which the line after "#!" names.
func interpreter(path string, line []byte) error {
	line, _, _ = bytes.Cut(line, []byte("\n"))
	if bytes.HasSuffix(line, []byte("\r")) {
		return fmt.Errorf("%s: its first line ends in CR LF, the line end of Windows: "+
			"convert the file with dos2unix or sed -i 's/\\r$//'", path)
	}
	words := strings.Fields(string(line))
	if len(words) == 0 {
		return fmt.Errorf("%s: its first line names no interpreter: want #!/bin/sh", path)
	}
	if err := executable(words[0]); err != nil {
		return fmt.Errorf("%s: its interpreter: %w", path, err)
	}
	return nil
}

// loader checks the dynamic loader of a binary, if it has one.
func loader(path string, f io.ReaderAt) error {
	binary, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("%s is not a complete program: %w", path, err)
	}
	for _, p := range binary.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > maxShebang {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return fmt.Errorf("%s is not a complete program: %w", path, err)
		}
		if err := executable(string(bytes.TrimRight(name, "\x00"))); err != nil {
			return fmt.Errorf("%s: its dynamic loader: %w", path, err)
		}
	}
	return nil
}

// executable reports whether a file can be executed by this process.
func executable(path string) error {
	_, err := exec.LookPath(path)
	return err
}
