package rows

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// replays puts records back as they were in an earlier reading: each column, and whole;
// one that is gone comes back, one that was not there goes.
func (t Table) replays(then []Table) (all []Alteration) {
	i := slices.IndexFunc(then, func(old Table) bool { return old.Name == t.Name })
	if i < 0 {
		return nil
	}
	old := then[i]
	for _, r := range t.Rows {
		was, ok := old.Same(r)
		if !ok {
			all = append(all, Alteration{
				Table: t.Name, Kind: Delete, Row: t.name(r) + " that is new", Replays: true,
				do: func(ctx context.Context, tx *sql.Tx) error { return t.delete(ctx, tx, r) },
			})
			continue
		}
		all = append(all, t.older(r, was)...)
	}
	for _, was := range old.Rows {
		if _, ok := t.Same(was); !ok {
			all = append(all, Alteration{
				Table: t.Name, Kind: Insert, Row: t.name(was) + " that was there", Replays: true,
				do: func(ctx context.Context, tx *sql.Tx) error { return t.insert(ctx, tx, was) },
			})
		}
	}
	return spreadOf(all, 24)
}

// Everything is the name of all tables at once.
const Everything = "every table"

// Rollbacks put each table, and then all of them, back as they were in an earlier reading.
func Rollbacks(earlier ...[]Table) (all []Alteration) {
	for n, then := range earlier {
		for _, old := range then {
			all = append(all, RollBack(n, then, old.Name))
		}
		all = append(all, RollBack(n, then))
	}
	return all
}

// RollBack puts some tables, or all if none is named, back as they were at moment n.
func RollBack(n int, then []Table, names ...string) Alteration {
	a := Alteration{Table: Everything, Kind: Older, Row: fmt.Sprintf("all, as at moment %d", n), Replays: true}
	if len(names) > 0 {
		a.Table = strings.Join(names, "+")
	}
	a.do = func(ctx context.Context, tx *sql.Tx) error {
		for _, old := range then {
			if len(names) > 0 && !slices.Contains(names, old.Name) {
				continue
			}
			if err := old.rollBack(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	}
	return a
}

// rollBack leaves the rows of this reading, and no others.
func (t Table) rollBack(ctx context.Context, tx *sql.Tx) error {
	now, err := readRows(ctx, tx, t)
	if err != nil {
		return err
	}
	for _, r := range now {
		if _, ok := t.Same(r); ok {
			continue
		}
		if err := t.delete(ctx, tx, r); err != nil {
			return err
		}
	}
	for _, r := range t.Rows {
		if err := t.replace(ctx, tx, r); err != nil {
			return err
		}
	}
	return nil
}

func spreadOf(all []Alteration, n int) (some []Alteration) {
	if len(all) <= n {
		return all
	}
	for i := range n {
		some = append(some, all[i*len(all)/n])
	}
	return some
}

func (t Table) older(r, was Row) (all []Alteration) {
	whole := map[int]any{}
	for i, c := range t.Columns {
		if equal(r[i], was[i]) {
			continue
		}
		whole[i] = was[i]
		all = append(all, Alteration{
			Table: t.Name, Column: c.Name, Kind: Older, Row: t.name(r),
			do: func(ctx context.Context, tx *sql.Tx) error { return t.set(ctx, tx, r, map[int]any{i: was[i]}) },
		})
	}
	if len(whole) > 0 {
		all = append(all,
			Alteration{
				Table: t.Name, Kind: Older, Row: t.name(r), Replays: true,
				do: func(ctx context.Context, tx *sql.Tx) error { return t.set(ctx, tx, r, whole) },
			}, t.trigger(r, whole))
	}
	return all
}

// trigger restores a record at every insertion into the audit records, so that it has its old value
// after every commit.
func (t Table) trigger(r Row, whole map[int]any) Alteration {
	return Alteration{
		Table: t.Name, Kind: Trigger, Row: "older " + t.name(r),
		do: func(ctx context.Context, tx *sql.Tx) error {
			where, args := t.key(r)
			text := "CREATE TRIGGER hostile AFTER INSERT ON " + outbox + " BEGIN UPDATE " + quoted(t.Name) + " SET "
			comma := ""
			for i, v := range whole {
				text += comma + quoted(t.Columns[i].Name) + " = " + literal(v)
				comma = ", "
			}
			_, err := tx.ExecContext(ctx, text+" WHERE "+filled(where, args)+"; END")
			return err
		},
	}
}

// outbox is the table into which every change of the appliance writes.
const outbox = "record"
