package relay

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"countersign/protocol"
	"countersign/protocol/receipt"
)

// firstPending and otherPending are two approvals that wait for a second approver.
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
	{"spent", progress{state: settled, isSpent: true}},
}

// row has the transitions of one event. Each rule is "columns: change | effects"; the last one is
// for "else", all other columns. An event without a change and effects has the rule "else:".
type row struct {
	event   eventKind
	with    string // "owner", and what else holds before the event
	pending *pending
	rules   string
}

var table = []row{
	{taken, "", nil, "offered: applied | apply; else: | apply"},

	{returned, "owner", nil, "applied countersigning: offered; else:"},
	{returned, "owner gone", nil, "applied countersigning: settled; else:"},
	{returned, "owner over", nil, "applied countersigning: offered -over; else:"},
	{returned, "", nil, "else:"},

	{challengeEnded, "owner calls=0", nil, "applied countersigning: settled +spent | expired; else:"},
	{challengeEnded, "owner calls=1", nil, "applied countersigning: +over; else:"},
	{challengeEnded, "calls=0", nil, "else:"},

	{countersigned, "owner calls=0", nil, "applied: countersigning calls=1 | forward; else: calls=1 | forward"},
	{countersigned, "calls=0", nil, "else: calls=1 | forward"},

	{answered, "calls=1", nil, "countersigning: applied calls=0 | reply; else: calls=0 | reply"},
	{answered, "calls=2 over", nil, "else: calls=1 | reply"},
	{answered, "calls=1 over", nil, "applied countersigning waiting: settled calls=0 -over +spent | reply expired; " +
		"else: calls=0 | reply"},

	{decided, "", nil, "else: | verify"},

	{concluded, "owner", nil, "applied countersigning: settled | inform record; else: | record"},
	{concluded, "owner over", nil, "applied countersigning: settled -over | inform record; else: | record"},
	{concluded, "", nil, "else: | record"},

	{denied, "", nil, "waiting: settled +spent | inform record; else: | record"},
	{denied, "calls=2 over", nil, "waiting: settled -over +spent | inform record; else: | record"},

	{pended, "", otherPending, "acting spent: | record; else: waiting other | await inform record"},
	{pended, "over closed", otherPending, "acting spent: | record; " +
		"else: waiting other -over -closed | await inform record"},

	{repeated, "", firstPending, "waiting: | relist; else:"},
	{repeated, "", otherPending, "else:"},
	{repeated, "over", firstPending, "else:"},
	{repeated, "gone", firstPending, "else:"},
	{repeated, "closed", firstPending, "else:"},

	{approved, "", nil, "else: | begin"},
	{begun, "", nil, "acting spent: | decline finish record; else: acting +spent | act"},
	{begun, "calls=2 over gone", nil, "acting spent: | decline finish record; else: acting +spent -over | act"},
	{known, "", nil, "else: | skip"},
	{unjournalled, "", nil, "acting: | stop; else: settled | inform stop"},
	{acted, "", nil, "acting: settled | finish inform record; else: | finish record"},

	{waitEnded, "calls=0", firstPending, "waiting: settled +spent | expired; else:"},
	{waitEnded, "calls=1", firstPending, "waiting: +over; else:"},
	{waitEnded, "", otherPending, "else:"},
	{superseded, "", nil, "waiting: +closed; else:"},
	{withdrawn, "calls=2", nil, "offered: settled +spent | expired; else:"},
	{abandoned, "", nil, "offered: settled +gone; else: +gone"},
}

// cell returns the rule of a row for a column.
func (r row) cell(t *testing.T, column string) string {
	t.Helper()
	for rule := range strings.SplitSeq(r.rules, ";") {
		names, cell, _ := strings.Cut(rule, ":")
		if fields := strings.Fields(names); slices.Contains(fields, column) || slices.Contains(fields, "else") {
			return cell
		}
	}
	t.Fatalf("event %d, %q: no rule for %s", r.event, r.with, column)
	return ""
}

var stateNames = []string{"offered", "applied", "countersigning", "waiting", "acting", "settled"}

var effectNames = []string{
	"apply", "forward", "verify", "begin", "act", "skip", "decline", "finish", "await", "relist", "inform", "record",
	"reply", "stop",
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
			all = append(all, effect{inform, result{Result: "expired", Code: protocol.CodeExpired}})
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
		for _, column := range columns {
			cell := row.cell(t, column.name)
			for _, isOnce := range []bool{true, false} {
				if !isOnce && (column.name == "spent" || row.event == begun && column.name == "acting") {
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
					t.Errorf("event %d, %q, in %s, once %v:\ngot  %+v %v\nwant %+v %v",
						row.event, row.with, column.name, isOnce, got, gotEffects, want, wantEffects)
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
