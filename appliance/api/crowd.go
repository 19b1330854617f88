package api

// crowd holds open connections by key, within a limit in all and a share for each key. Its lists are in order of
// arrival.
type crowd struct {
	most, share int
	patient     bool // a connection never leaves within a request: if none is idle, the new one leaves
	size        int
	byKey       map[string][]*conn
}

func newCrowd(most, share int) *crowd {
	return &crowd{most: most, share: share, byKey: map[string][]*conn{}}
}

// admit adds a connection under its key. If the share of its key or the crowd is full, admit removes the connection that
// leaves for it and returns it. From a full crowd, a connection of the key with the most leaves. A key with few
// connections keeps them: an attacker needs as many addresses as the crowd has places to push another peer out.
func (w *crowd) admit(c *conn) (leaves *conn) {
	w.byKey[c.key] = append(w.byKey[c.key], c)
	w.size++
	from := c.key
	switch {
	case len(w.byKey[c.key]) > w.share:
	case w.size > w.most:
		from = w.fullest(c)
	default:
		return nil
	}
	leaves = w.choose(from, c)
	w.remove(leaves)
	return leaves
}

// fullest returns the key with the most connections; of several such keys, the one with the oldest connection. In a
// patient crowd it is one that can spare a connection, because a peer could keep all others out with requests in
// progress; if no key can, it is the new one's.
func (w *crowd) fullest(newest *conn) string {
	key, list := newest.key, []*conn(nil)
	for k, l := range w.byKey {
		more := len(l) > len(list) || len(l) == len(list) && l[0].number < list[0].number
		if more && (!w.patient || oldestIdle(l, newest) != nil) {
			key, list = k, l
		}
	}
	return key
}

// choose returns the connection of a key that leaves: the oldest idle one. If none is idle, the newest leaves a patient
// crowd, and the oldest leaves any other.
func (w *crowd) choose(key string, newest *conn) *conn {
	if c := oldestIdle(w.byKey[key], newest); c != nil {
		return c
	}
	if first := w.byKey[key][0]; !w.patient && first != newest {
		return first
	}
	return newest
}

// oldestIdle returns the first idle connection of a list that is not the newest, or nil.
func oldestIdle(list []*conn, newest *conn) *conn {
	for _, c := range list {
		if c != newest && c.idle() {
			return c
		}
	}
	return nil
}

// remove removes a connection, if it is there.
func (w *crowd) remove(c *conn) {
	list := w.byKey[c.key]
	for i := range list {
		if list[i] != c {
			continue
		}
		copy(list[i:], list[i+1:])
		list[len(list)-1] = nil
		w.byKey[c.key] = list[:len(list)-1]
		w.size--
		break
	}
	if len(w.byKey[c.key]) == 0 {
		delete(w.byKey, c.key)
	}
}
