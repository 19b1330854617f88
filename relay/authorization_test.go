package relay

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"countersign/protocol"
	"countersign/protocol/receipt"
)

// first and other are two approvals that wait for a second approver.
var firstPending, otherPending = &pending{handle: []byte{1}}, &pending{handle: []byte{2}}

// columns are the progress of an authorization before the event.
var columns = []struct {
	name string
	from progress
}{
	{"offered", progress{state: offered}},
	{"applied", progress{state: applied}},
	{"countersigning", progress{state: countersigning, calls: 1}},
	{"waiting", progress{state: waiting, pending: firstPending}},
	{"acting", progress{state: acting, isSpent: true}},
	{"settled", progress{state: settled}},
	{"settled, spent", progress{state: settled, isSpent: true}},
}

// row has the transitions of one event. A cell is what changes, then "|" and the effects; an
// empty cell means that the event changes nothing.
type row struct {
	event   eventKind
	with    string // "owner", and what else holds before the event
	pending *pending
	cells   []string // as many as columns, or one for all
}

var table = []row{
	{taken, "", nil, []string{"applied | apply", "| apply", "| apply", "| apply", "| apply", "| apply", "| apply"}},

	{returned, "owner", nil, []string{"", "offered", "offered", "", "", "", ""}},
	{returned, "owner gone", nil, []string{"", "settled", "settled", "", "", "", ""}},
	{returned, "owner over", nil, []string{"", "offered -over", "offered -over", "", "", "", ""}},
	{returned, "", nil, []string{""}},

	{challengeEnded, "owner calls=0", nil, []string{"", "settled +spent | expired", "settled +spent | expired", "", "", "", ""}},
	{challengeEnded, "owner calls=1", nil, []string{"", "+over", "+over", "", "", "", ""}},
	{challengeEnded, "calls=0", nil, []string{""}},

	{countersigned, "owner calls=0", nil, []string{
		"calls=1 | forward", "countersigning calls=1 | forward", "calls=1 | forward", "calls=1 | forward", "calls=1 | forward", "calls=1 | forward", "calls=1 | forward",
	}},
	{countersigned, "calls=0", nil, []string{"calls=1 | forward"}},

	{answered, "calls=1", nil, []string{
		"calls=0 | reply", "calls=0 | reply", "applied calls=0 | reply", "calls=0 | reply", "calls=0 | reply", "calls=0 | reply", "calls=0 | reply",
	}},
	{answered, "calls=2 over", nil, []string{"calls=1 | reply"}},
	{answered, "calls=1 over", nil, []string{
		"calls=0 | reply", "settled calls=0 -over +spent | reply expired", "settled calls=0 -over +spent | reply expired",
		"settled calls=0 -over +spent | reply expired", "calls=0 | reply", "calls=0 | reply", "calls=0 | reply",
	}},

	{decided, "", nil, []string{"| verify"}},

	{concluded, "owner", nil, []string{
		"| record", "settled | tell record", "settled | tell record", "| record", "| record", "| record", "| record",
	}},
	{concluded, "owner over", nil, []string{
		"| record", "settled -over | tell record", "settled -over | tell record", "| record", "| record", "| record", "| record",
	}},
	{concluded, "", nil, []string{"| record"}},

	{denied, "", nil, []string{"| record", "| record", "| record", "settled +spent | tell record", "| record", "| record", "| record"}},
	{denied, "calls=2 over", nil, []string{
		"| record", "| record", "| record", "settled -over +spent | tell record", "| record", "| record", "| record",
	}},

	{pended, "", otherPending, []string{
		"waiting other | await tell record", "waiting other | await tell record", "waiting other | await tell record",
		"other | await tell record", "| record", "waiting other | await tell record", "| record",
	}},
	{pended, "over closed", otherPending, []string{
		"waiting other -over -closed | await tell record", "waiting other -over -closed | await tell record",
		"waiting other -over -closed | await tell record", "other -over -closed | await tell record", "| record",
		"waiting other -over -closed | await tell record", "| record",
	}},

	{repeated, "", firstPending, []string{"", "", "", "| relist", "", "", ""}},
	{repeated, "", otherPending, []string{""}},
	{repeated, "over", firstPending, []string{""}},
	{repeated, "gone", firstPending, []string{""}},
	{repeated, "closed", firstPending, []string{""}},

	{approved, "", nil, []string{"| begin"}},
	{begun, "", nil, []string{
		"acting +spent | act", "acting +spent | act", "acting +spent | act", "acting +spent | act",
		"| decline finish record", "acting +spent | act", "| decline finish record",
	}},
	{begun, "calls=2 over gone", nil, []string{
		"acting +spent -over | act", "acting +spent -over | act", "acting +spent -over | act", "acting +spent -over | act",
		"| decline finish record", "acting +spent -over | act", "| decline finish record",
	}},
	{known, "", nil, []string{"| skip"}},
	{unjournalled, "", nil, []string{
		"settled | tell stop", "settled | tell stop", "settled | tell stop", "settled | tell stop", "| stop", "| tell stop", "| tell stop",
	}},
	{acted, "", nil, []string{
		"| finish record", "| finish record", "| finish record", "| finish record", "settled | finish tell record", "| finish record", "| finish record",
	}},

	{waitEnded, "calls=0", firstPending, []string{"", "", "", "settled +spent | expired", "", "", ""}},
	{waitEnded, "calls=1", firstPending, []string{"", "", "", "+over", "", "", ""}},
	{waitEnded, "", otherPending, []string{""}},
	{superseded, "", nil, []string{"", "", "", "+closed", "", "", ""}},
	{withdrawn, "calls=2", nil, []string{"settled +spent | expired", "", "", "", "", "", ""}},
	{abandoned, "", nil, []string{"settled +gone", "+gone", "+gone", "+gone", "+gone", "+gone", "+gone"}},
}

var stateNames = []string{"offered", "applied", "countersigning", "waiting", "acting", "settled"}

var effectNames = []string{
	"apply", "forward", "verify", "begin", "act", "skip", "decline", "finish", "await", "relist", "tell", "record", "reply", "stop",
}

// change applies the words of a cell to a progress.
func change(t *testing.T, p progress, words string) progress {
	t.Helper()
	for _, word := range strings.Fields(words) {
		name, isOn := strings.TrimLeft(word, "+-"), word[0] != '-'
		switch count, isCount := strings.CutPrefix(word, "calls="); {
		case isCount:
			n, err := strconv.Atoi(count)
			must(t, err)
			p.calls = n
		case name == "over":
			p.isOver = isOn
		case name == "gone":
			p.isGone = isOn
		case name == "closed":
			p.isClosed = isOn
		case name == "spent":
			p.isSpent = isOn && p.isOnce
		case name == "other":
			p.pending = otherPending
		case name == "owner":
		default:
			i := slices.Index(stateNames, name)
			if i < 0 {
				t.Fatalf("no such state: %q", name)
			}
			p.state = state(i)
		}
	}
	return p
}

// wanted returns the effects that a cell names.
func wanted(t *testing.T, names string, r result) (all []effect) {
	t.Helper()
	for _, name := range strings.Fields(names) {
		if name == "expired" {
			all = append(all, effect{tell, result{Result: "expired", Code: protocol.CodeExpired}})
			continue
		}
		i := slices.Index(effectNames, name)
		if i < 0 {
			t.Fatalf("no such effect: %q", name)
		}
		f := effect{effectKind(i), r}
		if slices.Contains([]string{"apply", "forward", "verify", "relist", "reply"}, name) {
			f.result = result{}
		}
		all = append(all, f)
	}
	return all
}

// TestTransitions holds next against the table: every event in every state, for an order that a
// program placed and for one from the configuration.
func TestTransitions(t *testing.T) {
	var seen [eventKinds]bool
	for _, row := range table {
		seen[row.event] = true
		if n := len(row.cells); n != 1 && n != len(columns) {
			t.Fatalf("event %d, %q: %d cells", row.event, row.with, n)
		}
		for i, column := range columns {
			cell := row.cells[min(i, len(row.cells)-1)]
			for _, isOnce := range []bool{true, false} {
				isSpentColumn := column.from.state == settled && column.from.isSpent
				if !isOnce && (isSpentColumn || row.event == begun && column.from.state == acting) {
					continue // never spent; TestStandingOrder has the second act
				}
				from := column.from
				from.isOnce, from.isSpent = isOnce, from.isSpent && isOnce
				from = change(t, from, row.with)
				e := event{
					kind: row.event, isOwner: strings.Contains(row.with, "owner"), pending: row.pending,
					result: result{Result: "some", Decision: &receipt.Decision{}},
				}
				changes, names, _ := strings.Cut(cell, "|")
				want, wantEffects := change(t, from, changes), wanted(t, names, e.result)
				got, gotEffects := from.next(e)
				if got != want || !slices.Equal(gotEffects, wantEffects) {
					t.Errorf("event %d, %q, in %s, once %v:\ngot  %+v %v\nwant %+v %v", row.event, row.with, column.name, isOnce, got, gotEffects, want, wantEffects)
				}
			}
		}
	}
	for kind, isSeen := range seen {
		if !isSeen {
			t.Errorf("the table lacks event %d", kind)
		}
	}
}

// TestStandingOrder acts on two approvals of one authorization whose order is not a program's.
func TestStandingOrder(t *testing.T) {
	p := progress{state: acting, calls: 1}
	got, all := p.next(event{kind: begun})
	if got != p || !slices.Equal(all, effects(result{}, act)) {
		t.Errorf("got %+v %v", got, all)
	}
}

// TestActsAtMostOnce visits every progress that a program's order can reach, by any events in
// any order: the device acts only when the journal has just stored the transaction and the order
// is not spent, the order is spent from then on, and the hook's end is always journalled.
func TestActsAtMostOnce(t *testing.T) {
	start := progress{isOnce: true}
	visited, queue := map[progress]bool{start: true}, []progress{start}
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		for kind := range eventKinds {
			for _, isOwner := range []bool{false, true} {
				for _, about := range []*pending{firstPending, otherPending} {
					got, all := p.next(event{kind: kind, isOwner: isOwner, pending: about})
					acts := slices.Contains(all, effect{kind: act})
					if acts && (kind != begun || p.isSpent || !got.isSpent || got.state != acting) {
						t.Fatalf("event %d acts: %+v becomes %+v", kind, p, got)
					}
					if p.isSpent && !got.isSpent {
						t.Fatalf("event %d: %+v becomes %+v, which can be acted on again", kind, p, got)
					}
					if kind == acted && !slices.Contains(all, effect{kind: finish}) {
						t.Fatalf("the end of an act is not journalled in %+v", p)
					}
					isPossible := got.calls >= 0 && got.calls <= 2
					if isPossible && !visited[got] {
						visited[got] = true
						queue = append(queue, got)
					}
				}
			}
		}
	}
	if len(visited) < 100 {
		t.Errorf("visited %d, want many", len(visited))
	}
}
