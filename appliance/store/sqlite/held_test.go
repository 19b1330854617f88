package sqlite

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// TestHeld tries changes to the file that the store has always refused.
func TestHeld(t *testing.T) {
	two := func(t *testing.T) (*database, *store.Seals, storetest.Parties, storetest.Parties) {
		s, seals, p := serving(t, nil)
		q, err := storetest.Seed(t.Context(), s, "bert")
		if err != nil {
			t.Fatal(err)
		}
		return s, seals, p, q
	}
	t.Run("a client under another's id", func(t *testing.T) {
		s, _, p, q := two(t)
		spoil(t, s.path, `DROP TABLE IF EXISTS temp.x`, `CREATE TEMP TABLE x AS SELECT * FROM client WHERE name = 'alice'`, `UPDATE client SET id = x'0000000000000000' WHERE name = 'alice'`,
			fmt.Sprintf(`UPDATE client SET id = x'%x' WHERE name = 'bert'`, p.Client.ID[:]))
		if _, err := s.Client(t.Context(), p.Client.ID); !errors.Is(err, store.ErrForged) {
			t.Error(err)
		}
		_ = q
	})
	t.Run("the index of ids leads to another's row", func(t *testing.T) {
		s, _, p, q := two(t)
		// the index has p's id for q's row: rows change under an index that stays
		behindSchema(t, s.path, loosen("client"), fmt.Sprintf(`UPDATE client SET id = x'%x' WHERE name = 'alice'`, q.Client.ID[:]), fmt.Sprintf(`UPDATE client SET id = x'%x' WHERE name = 'bert'`, p.Client.ID[:]))
		for _, one := range []storetest.Parties{p, q} {
			c, err := s.Client(t.Context(), one.Client.ID)
			if err == nil && c.Name != one.Client.Name {
				t.Errorf("%s under the id of %s", c.Name, one.Client.Name)
			}
			if _, err := s.Spend(t.Context(), one.Spend(3)); err != nil && !errors.Is(err, store.ErrForged) {
				t.Error(err)
			}
		}
	})
	t.Run("a restraint of another", func(t *testing.T) {
		s, _, p, _ := two(t)
		spoil(t, s.path, `PRAGMA foreign_keys = 0`, `DROP TRIGGER restraint_not_deleted`, `DELETE FROM restraint WHERE client = (SELECT ref FROM client WHERE name = 'alice')`,
			`UPDATE restraint SET client = (SELECT ref FROM client WHERE name = 'alice')`)
		if _, err := s.Client(t.Context(), p.Client.ID); !errors.Is(err, store.ErrForged) {
			t.Error(err)
		}
	})
	t.Run("a decision under another counter, and of another client", func(t *testing.T) {
		s, _, p, q := two(t)
		first := p.Spend(1)
		if _, err := s.Spend(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		spoil(t, s.path, `UPDATE decision SET counter = 2`)
		k := first.AnswerKey
		k.Serial[3] = 2
		if out, err := s.Answered(t.Context(), k); err == nil {
			t.Error(out)
		}
		spoil(t, s.path, `UPDATE decision SET counter = 1, client = (SELECT ref FROM client WHERE name = 'bert')`)
		k = first.AnswerKey
		k.Client = q.Client.ID
		if out, err := s.Answered(t.Context(), k); err == nil {
			t.Error(out)
		}
	})
	t.Run("an attempt is deleted", func(t *testing.T) {
		s, _, p, _ := two(t)
		a := p.Attempt(4)
		if _, err := s.Try(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		spoil(t, s.path, `DELETE FROM attempt`)
		if tried, err := s.Try(t.Context(), a); !errors.Is(err, store.ErrForged) {
			t.Error(tried, err)
		}
	})
	t.Run("seals of two rows in one, and none in the other", func(t *testing.T) {
		s, _, _, _ := two(t)
		spoil(t, s.path, `CREATE TEMP TABLE two AS SELECT (SELECT seal FROM admin ORDER BY id LIMIT 1) AS a, (SELECT seal FROM admin ORDER BY id DESC LIMIT 1) AS b`,
			`UPDATE admin SET seal = CAST((SELECT a || b FROM two) AS BLOB) WHERE id = (SELECT min(id) FROM admin)`, `UPDATE admin SET seal = NULL WHERE id = (SELECT max(id) FROM admin)`)
		if all, err := s.ListAdmins(t.Context()); !errors.Is(err, store.ErrForged) {
			t.Error(all, err)
		}
	})
	t.Run("a pending row goes on waiting for SQL only", func(t *testing.T) {
		s, _, p, _ := two(t)
		w := p.Spend(2)
		w.Now, w.Pending = time.Now(), &store.Pending{Role: "owner", Expires: time.Now().Add(time.Hour)}
		if _, err := s.Spend(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		spoil(t, s.path, `UPDATE decision SET role = NULL, expires_us = NULL`)
		k := w
		if out, err := s.Answered(t.Context(), k.AnswerKey); !errors.Is(err, store.ErrForged) {
			t.Error(out, err)
		}
	})
	t.Run("a head without an anchor, the file put back while it serves", func(t *testing.T) {
		s, _, _, _ := two(t)
		head := ask(t, s.path, `SELECT hex(body) || ' ' || hex(seal) FROM head WHERE name = 'head'`)
		suspendBob(t, s)
		spoil(t, s.path, fmt.Sprintf(`UPDATE head SET body = x'%s', seal = x'%s' WHERE name = 'head'`, head[:len(head)-81], head[len(head)-80:]))
		if all, err := s.ListAdmins(t.Context()); !errors.Is(err, store.ErrForged) {
			t.Error(all, err)
		}
	})
	t.Run("user_version of an older release", func(t *testing.T) {
		s, _, _, _ := two(t)
		_ = s.Close()
		raw(t, s.path, `PRAGMA user_version = 7`)
		if _, err := openDatabase(t.Context(), Config{Path: s.path}); !errors.Is(err, ErrMigrate) {
			t.Error(err)
		}
		if old, err := OpenOld(t.Context(), s.path); err == nil {
			_, err = old.Read()
			if err == nil {
				t.Error("a sealed store is read as one that nobody sealed")
			}
			_ = old.Close()
		}
	})
	t.Run("user_version of a newer release", func(t *testing.T) {
		s, _, _, _ := two(t)
		_ = s.Close()
		raw(t, s.path, `PRAGMA user_version = 9999`)
		if err := unseals(t, s.path, nil); !errors.Is(err, store.ErrForged) {
			t.Error(err)
		}
	})
	t.Run("a second store on the file", func(t *testing.T) {
		s, _, _, _ := two(t)
		if _, err := openDatabase(t.Context(), Config{Path: s.path}); !errors.Is(err, store.ErrUnavailable) {
			t.Error(err)
		}
		if _, err := OpenOld(t.Context(), s.path); !errors.Is(err, store.ErrUnavailable) {
			t.Error(err)
		}
	})
}
