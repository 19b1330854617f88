package shim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// Count is the statistics of one PKCS#11 function.
type Count struct {
	Calls  uint64        // begun
	Errors uint64        // return codes other than CKR_OK, the injected ones too
	Faults uint64        // injected: every action but latency and jitter
	Time   time.Duration // in calls that ended
}

// Counts are by function, "C_Sign". They omit a function that was never called.
type Counts map[string]Count

// Of the file of FAULTSHIM_COUNTS, described in softhsm-test/faultshim/counts.c.
const (
	countsMagic   = "FSCOUNT1"
	headerSize    = 64
	functionSize  = 64
	functionCount = 68
	functionsEnd  = headerSize + functionCount*functionSize
	nameSize      = 32 // bytes of a name
)

// ErrCounts: the file was not written by the shim.
var ErrCounts = errors.New("no counts of faultshim")

// ReadCounts reads a file of FAULTSHIM_COUNTS while processes write it. A missing file
// means no calls. Another file is [ErrCounts].
func ReadCounts(path string) (Counts, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Counts{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading counts: %w", err)
	}
	if len(raw) < functionsEnd || !bytes.HasPrefix(raw, []byte(countsMagic)) {
		return nil, fmt.Errorf("reading counts: %s: %w", path, ErrCounts)
	}
	counts := Counts{}
	for at := headerSize; at < functionsEnd; at += functionSize {
		name, c := parseCount(raw[at : at+functionSize])
		if c.Calls != 0 {
			counts[name] = c
		}
	}
	return counts, nil
}

func parseCount(b []byte) (name string, c Count) {
	text, _, _ := bytes.Cut(b[:nameSize], []byte{0})
	word := func(i int) uint64 { return binary.NativeEndian.Uint64(b[nameSize+8*i:]) }
	return string(text), Count{Calls: word(0), Errors: word(1), Faults: word(2), Time: time.Duration(word(3))}
}

// Minus returns the counts since other counts were read.
func (c Counts) Minus(before Counts) Counts {
	since := Counts{}
	for name, n := range c {
		b := before[name]
		if n != b {
			since[name] = Count{Calls: n.Calls - b.Calls, Errors: n.Errors - b.Errors, Faults: n.Faults - b.Faults, Time: n.Time - b.Time}
		}
	}
	return since
}

// Faults returns the number of faults injected into all functions.
func (c Counts) Faults() (sum uint64) {
	for _, n := range c {
		sum += n.Faults
	}
	return sum
}

// Fault is a line of the log: an injected fault.
type Fault struct {
	PID      int
	Function string // C_Sign
	Action   string // garbage
}

// Injected lists the injected faults, the oldest first, without latency and jitter.
func (s Shim) Injected() ([]Fault, error) {
	raw, err := os.ReadFile(s.log())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the log of faults: %w", err)
	}
	var faults []Fault
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) != 5 {
			return nil, fmt.Errorf("log of faults, line %d: %q", len(faults)+1, line)
		}
		pid, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("log of faults, line %d: %w", len(faults)+1, err)
		}
		faults = append(faults, Fault{PID: pid, Function: fields[2], Action: fields[3]})
	}
	return faults, nil
}
