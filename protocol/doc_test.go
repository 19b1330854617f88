package protocol_test

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/internal/domain"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

func readText(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestTextHoldsCodes: the code table of PROTOCOL.md §4 and the constants are the
// same set.
func TestTextHoldsCodes(t *testing.T) {
	_, table, _ := strings.Cut(readText(t), "| code | meaning | where |")
	table, _, _ = strings.Cut(table, "\n\n")
	var inText []protocol.Code
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(line, "|")
		for _, item := range strings.Split(cells[1], ",") {
			first, last, isRange := strings.Cut(strings.TrimSpace(item), "–")
			if !isRange {
				last = first
			}
			from, err1 := strconv.Atoi(first)
			to, err2 := strconv.Atoi(last)
			if err1 != nil || err2 != nil {
				t.Fatalf("code cell %q", item)
			}
			for c := from; c <= to; c++ {
				inText = append(inText, protocol.Code(c))
			}
		}
	}
	var inCode []protocol.Code
	for c := range protocol.Code(255) {
		if !strings.HasPrefix(c.String(), "code ") {
			inCode = append(inCode, c)
		}
	}
	slices.Sort(inText)
	slices.Sort(inCode)
	if !slices.Equal(inText, inCode) {
		t.Errorf("the text has codes %d, the package %d", inText, inCode)
	}
}

// TestTextHoldsDomains: every domain string of §2 is a constant, and the reverse.
func TestTextHoldsDomains(t *testing.T) {
	_, list, _ := strings.Cut(readText(t), "Domain strings:")
	list, _, _ = strings.Cut(list, ".\n\n")
	var inText []string
	for _, m := range regexp.MustCompile("`(OA1 [^`]+)`").FindAllStringSubmatch(list, -1) {
		inText = append(inText, m[1])
	}
	inCode := slices.Clone(domain.All)
	slices.Sort(inText)
	slices.Sort(inCode)
	if !slices.Equal(inText, inCode) {
		t.Errorf("the text has %q, the package %q", inText, inCode)
	}
}

// TestTextHoldsNumbers: sizes and first bytes that the text states.
func TestTextHoldsNumbers(t *testing.T) {
	text := readText(t)
	for _, c := range []struct {
		pattern string
		want    int
	}{
		{`M1 APPLY +0x([0-9A-F]+)`, message.KindM1<<4 | message.Version},
		{`M2 CHALLENGE +0x([0-9A-F]+)`, message.KindM2<<4 | message.Version},
		{`M3 COUNTERSIGN +0x([0-9A-F]+)`, message.KindM3<<4 | message.Version},
		{`M4 RECEIPT +0x([0-9A-F]+)`, message.KindM4<<4 | message.Version},
		{`MU KEYUPDATE +0x([0-9A-F]+)`, message.KindKeyUpdate<<4 | message.Version},
		{`ME LINK-ERROR +0x([0-9A-F]+)`, message.KindLinkError<<4 | message.Version},
	} {
		m := regexp.MustCompile(c.pattern).FindStringSubmatch(text)
		if m == nil {
			t.Errorf("the text has no %s", c.pattern)
			continue
		}
		if got, err := strconv.ParseInt(m[1], 16, 32); err != nil || int(got) != c.want {
			t.Errorf("%s: the text has %#x, the package %#x", c.pattern, got, c.want)
		}
	}
	for phrase, holds := range map[string]bool{
		"at most 2,048 bytes":      message.MaxFrame == 2048,
		"≤ 1,024 B, opaque":        deviceapi.MaxHandle == 1024,
		"n ≤ 8":                    trust.MaxCerts == 8,
		"text tstr ≤ 44 bytes":     message.MaxTextBytes == 44,
		"tstr ≤ 24 bytes":          message.MaxNameBytes == 24,
		"amount is a uint < 10^15": protocol.MaxMinor+1 == 1_000_000_000_000_000,
	} {
		if !strings.Contains(text, phrase) || !holds {
			t.Errorf("%q: in the text %v, in the package %v", phrase, strings.Contains(text, phrase), holds)
		}
	}
}
