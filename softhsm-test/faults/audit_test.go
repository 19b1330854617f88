package faults

import (
	"testing"
	"time"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
)

func TestDoubles(t *testing.T) {
	one, two := protocol.TransactionID{1}, protocol.TransactionID{2}
	a, b := protocol.Serial{1}, protocol.Serial{2}
	for name, c := range map[string]struct {
		approved []approval
		twice    int
		forRelay int
	}{
		"none":                {nil, 0, 0},
		"two serials":         {[]approval{{serial: a, transaction: one, acts: true}, {serial: b, transaction: two}}, 0, 1},
		"one told again":      {[]approval{{serial: a, transaction: one}, {serial: a, transaction: one}}, 0, 0},
		"two for one serial":  {[]approval{{serial: a, transaction: one}, {serial: a, transaction: two}}, 1, 0},
		"both through relays": {[]approval{{serial: a, transaction: one, acts: true}, {serial: a, transaction: two, acts: true}}, 1, 2},
	} {
		if twice, forRelay := doubles(c.approved); twice != c.twice || len(forRelay) != c.forRelay {
			t.Errorf("%s: %d twice, relay %v", name, twice, forRelay)
		}
	}
}

func TestJudge(t *testing.T) {
	known := map[string]bool{"a": true, "b": true}
	for name, c := range map[string]struct {
		acts []string
		good bool
	}{
		"each once": {[]string{"b", "a"}, true},
		"twice":     {[]string{"a", "b", "a"}, false},
		"unknown":   {[]string{"a", "c"}, false},
	} {
		var acts []harness.Act
		for _, transaction := range c.acts {
			acts = append(acts, harness.Act{Transaction: transaction})
		}
		if err := judge(acts, known); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestJournal(t *testing.T) {
	at := time.Now().Add(-time.Minute)
	j := &journal{}
	for i := range 10 {
		j.add(exchange{begun: at.Add(time.Duration(i) * time.Second), took: time.Duration(i+1) * 100 * time.Millisecond})
	}
	if got := len(j.since(at.Add(3*time.Second), at.Add(5*time.Second))); got != 2 {
		t.Errorf("%d exchanges began in two seconds", got)
	}
	if got := len(j.touched(at.Add(8500 * time.Millisecond))); got != 2 {
		t.Errorf("%d exchanges ended after 8.5 s", got) // the one at 8 s took 0.9 s
	}
	all := j.since(at, time.Now())
	if quantile(all, 0) != 100*time.Millisecond || quantile(all, 0.5) != 600*time.Millisecond || quantile(all, 1) != time.Second || quantile(nil, 1) != 0 {
		t.Errorf("quantiles %v, %v, %v", quantile(all, 0), quantile(all, 0.5), quantile(all, 1))
	}
}
