package hostile

import (
	"errors"
	"testing"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/hostile/rows"
)

// TestJudge holds the oracle: what the untouched world gives, or less, is fine.
func TestJudge(t *testing.T) {
	o := operation{name: "x", honest: []grant{{"door", 2}}}
	table := func(name string, replays bool) attempt {
		return attempt{Alteration: rows.Alteration{Table: name, Replays: replays}, operation: o}
	}
	denied := errors.New("denied")
	for _, c := range []struct {
		name   string
		at     attempt
		grants []grant
		err    error
		want   outcome
	}{
		{"as ever", table("client", false), []grant{{"door", 2}}, nil, harmless},
		{"at a higher level", table("client", false), []grant{{"door", 3}}, nil, harmless},
		{"nothing", table("client", false), nil, nil, refused},
		{"an error", table("client", false), nil, denied, refused},
		{"a forgery that is told", table("client", false), nil, errors.New("a record does not fit its seal"), alarm},
		{"at a lower level", table("client", false), []grant{{"door", 1}}, nil, granted},
		{"another door, and an error", table("client", false), []grant{{"safe", 2}}, denied, granted},
		{"a record as it once was", table("client", true), []grant{{"safe", 2}}, nil, conceded},
		{"a policy as it once was", table("policy", true), []grant{{"safe", 2}}, nil, granted},
		{"a panic", table("client", false), nil, errPanic, crashed},
	} {
		if v := judge(c.at, nil, c.grants, c.err); v.outcome != c.want {
			t.Errorf("%s: %s, want %s", c.name, v.outcome, c.want)
		}
	}
}

// TestEdits: the edits of each break fit the source.
func TestEdits(t *testing.T) {
	for name, edits := range breaks {
		if _, err := harness.Overlay(t.Context(), t.TempDir(), edits); err != nil {
			t.Errorf("BREAK=%s: %v", name, err)
		}
	}
}
