package rows

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
)

// rowsOfTable bounds how many records of a table are altered: one of each class, as many
// classes as that.
const rowsOfTable = 8

// Generate gives every alteration of a record: each column of a record of each class,
// the record itself, and records put back as they were in earlier readings.
func Generate(now []Table, earlier ...[]Table) (all []Alteration) {
	for _, t := range now {
		for _, r := range t.classes() {
			all = append(all, t.ofColumns(r)...)
			all = append(all, t.ofRow(r)...)
		}
		for _, then := range earlier {
			all = append(all, t.replays(then)...)
		}
	}
	return all
}

// Wholesale gives for each table the two alterations that show which operations read it:
// all its records gone, and all of them spoilt.
func Wholesale(now []Table) (all []Alteration) {
	for _, t := range now {
		all = append(all,
			Alteration{Table: t.Name, Kind: Empty, Row: "all", do: func(ctx context.Context, tx *sql.Tx) error {
				return change(ctx, tx, "DELETE FROM "+quoted(t.Name))
			}},
			Alteration{Table: t.Name, Kind: Mangle, Row: "all", do: t.mangle})
	}
	return all
}

// mangle flips each value that is not part of a key, as far as the schema admits it.
func (t Table) mangle(ctx context.Context, tx *sql.Tx) error {
	done := false
	for _, r := range t.Rows {
		for i, c := range t.Columns {
			if c.Key || c.Refers || r[i] == nil {
				continue
			}
			if t.set(ctx, tx, r, map[int]any{i: flip(r[i])}) == nil {
				done = true
			}
		}
	}
	if !done {
		return fmt.Errorf("nothing to spoil: %w", ErrImpossible)
	}
	return nil
}

// classes are records that differ in what makes a difference: which columns are NULL, and
// the values of columns with few different ones.
func (t Table) classes() (some []Row) {
	few := make([]bool, len(t.Columns))
	for i := range t.Columns {
		values := map[string]bool{}
		for _, r := range t.Rows {
			values[fmt.Sprintf("%x", r[i])] = true
		}
		few[i] = len(values) <= 6
	}
	seen := map[string]bool{}
	for _, r := range t.Rows {
		class := ""
		for i, v := range r {
			switch {
			case v == nil:
				class += "|null"
			case few[i]:
				class += fmt.Sprintf("|%x", v)
			default:
				class += "|some"
			}
		}
		if !seen[class] {
			seen[class] = true
			some = append(some, r)
		}
	}
	return spread(some, rowsOfTable)
}

// spread takes n of all, evenly.
func spread(all []Row, n int) (some []Row) {
	if len(all) <= n {
		return all
	}
	for i := range n {
		some = append(some, all[i*len(all)/n])
	}
	return some
}

// name says which record it is.
func (t Table) name(r Row) string {
	for _, want := range []string{"name", "id"} {
		i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == want })
		if i < 0 {
			continue
		}
		if j := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == "version" && c.Key }); j >= 0 {
			return fmt.Sprintf("%s@%v", words(r[i]), r[j])
		}
		return words(r[i])
	}
	name := ""
	for i, c := range t.Columns {
		if c.Key {
			name += "/" + words(r[i])
		}
	}
	return name
}

// ofColumns alters one column of a record.
func (t Table) ofColumns(r Row) (all []Alteration) {
	for i, c := range t.Columns {
		add := func(k Kind, what string, v any) {
			if equal(v, r[i]) {
				return
			}
			all = append(all, Alteration{
				Table: t.Name, Column: c.Name, Kind: k, Row: t.name(r) + what,
				do: func(ctx context.Context, tx *sql.Tx) error { return t.set(ctx, tx, r, map[int]any{i: v}) },
			})
		}
		if !c.NotNull {
			add(Null, "", nil)
		}
		add(Zero, "", zero(r[i]))
		add(Flip, "", flip(r[i]))
		add(Next, "", next(r[i]))
		for _, other := range t.others(r, i) {
			add(Other, " from "+t.name(other), other[i])
			all = append(all, t.swapColumn(r, other, i))
		}
	}
	return all
}

// others are up to three records with other values in a column.
func (t Table) others(r Row, i int) (some []Row) {
	seen := []any{r[i]}
	for _, other := range t.Rows {
		if !slices.ContainsFunc(seen, func(v any) bool { return equal(v, other[i]) }) {
			seen, some = append(seen, other[i]), append(some, other)
		}
	}
	return spread(some, 3)
}

// swapColumn exchanges one column of two records. A value that has to be unique is
// parked meanwhile.
func (t Table) swapColumn(a, b Row, i int) Alteration {
	return Alteration{
		Table: t.Name, Column: t.Columns[i].Name, Kind: Swap, Row: t.name(a) + " and " + t.name(b),
		do: func(ctx context.Context, tx *sql.Tx) error {
			if t.Columns[i].Key {
				return t.swapRows(ctx, tx, a, b)
			}
			return t.exchange(ctx, tx, a, b, map[int]bool{i: true})
		},
	}
}

func (t Table) exchange(ctx context.Context, tx *sql.Tx, a, b Row, columns map[int]bool) error {
	parked, toA, toB := map[int]any{}, map[int]any{}, map[int]any{}
	for i := range columns {
		parked[i], toA[i], toB[i] = park(a[i]), b[i], a[i]
	}
	for _, step := range []struct {
		row    Row
		values map[int]any
	}{{a, parked}, {b, toB}, {a, toA}} {
		if err := t.set(ctx, tx, step.row, step.values); err != nil {
			return err
		}
	}
	return nil
}

// park is a value that no record has.
func park(v any) any {
	switch v := v.(type) {
	case int64:
		return v + 1<<40
	case string:
		return v + " parked"
	case []byte:
		if len(v) == 0 {
			return v
		}
		b := slices.Clone(v)
		for i := range b {
			b[i] ^= 0xa5
		}
		return b
	default:
		return nil
	}
}

// swapRows exchanges all columns of two records but their keys.
func (t Table) swapRows(ctx context.Context, tx *sql.Tx, a, b Row) error {
	columns := map[int]bool{}
	for i, c := range t.Columns {
		if !c.Key {
			columns[i] = true
		}
	}
	if len(columns) == 0 {
		return fmt.Errorf("a key only: %w", ErrImpossible)
	}
	return t.exchange(ctx, tx, a, b, columns)
}

// ofRow deletes a record, copies it under another key, and exchanges it with others.
func (t Table) ofRow(r Row) (all []Alteration) {
	all = append(all,
		Alteration{Table: t.Name, Kind: Delete, Row: t.name(r), do: func(ctx context.Context, tx *sql.Tx) error { return t.delete(ctx, tx, r) }},
		Alteration{Table: t.Name, Kind: Insert, Row: "like " + t.name(r), do: func(ctx context.Context, tx *sql.Tx) error { return t.copied(ctx, tx, r) }})
	for _, other := range spread(t.Rows, 4) {
		if !slices.EqualFunc(r, other, equal) {
			all = append(all,
				Alteration{
					Table: t.Name, Kind: Swap, Row: t.name(r) + " and " + t.name(other),
					do: func(ctx context.Context, tx *sql.Tx) error { return t.swapRows(ctx, tx, r, other) },
				},
				Alteration{
					Table: t.Name, Kind: Other, Row: t.name(r) + " from " + t.name(other),
					do: func(ctx context.Context, tx *sql.Tx) error { return t.set(ctx, tx, r, t.shared(other)) },
				})
		}
	}
	return all
}

// shared are the values of a record that others may have too.
func (t Table) shared(r Row) map[int]any {
	values := map[int]any{}
	for i, c := range t.Columns {
		if !c.Key && !c.Unique {
			values[i] = r[i]
		}
	}
	return values
}

// copied inserts a record again under another key; then also with other values in the
// columns that have to be unique.
func (t Table) copied(ctx context.Context, tx *sql.Tx, r Row) error {
	fresh := slices.Clone(r)
	for i, c := range t.Columns {
		if c.Key {
			fresh[i] = t.unused(i, r[i])
		}
	}
	err := t.insert(ctx, tx, fresh)
	if err == nil {
		return nil
	}
	for i, c := range t.Columns {
		if !c.Key && !c.Refers && fresh[i] != nil {
			fresh[i] = t.unused(i, r[i])
		}
	}
	return t.insert(ctx, tx, fresh)
}

// unused is a value near v that no record has, or v of a column of few values.
func (t Table) unused(i int, v any) any {
	for range 1000 {
		v = next(v)
		if !slices.ContainsFunc(t.Rows, func(r Row) bool { return equal(r[i], v) }) {
			return v
		}
	}
	return v
}
