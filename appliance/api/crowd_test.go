package api

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
)

// TestCrowd: who leaves for a new connection. A key of a connection is its first letter; small letters are idle, and
// capital ones have a request in progress.
func TestCrowd(t *testing.T) {
	for _, c := range []struct {
		name                  string
		most, share           int
		patient               bool
		arrive, leave, remain string
	}{
		{"room for all", 4, 4, false, "a b a c", "", "a1 b2 a3 c4"},
		{"share full: its oldest", 9, 2, false, "b a a a", "a2", "b1 a3 a4"},
		{"share full: its oldest idle one", 9, 2, false, "A a a", "a2", "A1 a3"},
		{"share full, none idle: the oldest", 9, 2, false, "A A A", "A1", "A2 A3"},
		{"all full: from the key with the most", 4, 4, false, "b a a a c", "a2", "a3 a4 b1 c5"},
		{"all full: also if that is the new one's", 3, 3, false, "b a a a", "a2", "a3 a4 b1"},
		{"all full, one of each: the oldest", 3, 3, false, "c b a d", "c1", "a3 b2 d4"},
		{"patient: the oldest idle one", 9, 2, true, "A a a", "a2", "A1 a3"},
		{"patient, none idle: the new one", 9, 2, true, "A A a", "a3", "A1 A2"},
		{"patient, all full, none idle: the new one", 2, 2, true, "A A b", "b3", "A1 A2"},
		{"patient, all full, one key is busy: from the next", 6, 3, true, "A A A b c c d", "c5", "A1 A2 A3 b4 c6 d7"},
		{"patient, all full, one idle elsewhere: that one", 5, 3, true, "A A A B c d", "c5", "A1 A2 A3 B4 d6"},
		{"patient, all full, of the busiest: its idle one", 4, 4, true, "b A A a c", "a4", "A2 A3 b1 c5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newCrowd(c.most, c.share)
			w.patient = c.patient
			var left []string
			for i, word := range strings.Fields(c.arrive) {
				n := &conn{number: uint64(i + 1), key: strings.ToLower(word), shaken: true}
				if word != n.key {
					n.requests = 1
				}
				if leaves := w.admit(n); leaves != nil {
					left = append(left, shown(leaves))
				}
			}
			var remain []string
			for _, list := range w.byKey {
				for _, n := range list {
					remain = append(remain, shown(n))
				}
			}
			slices.SortFunc(remain, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
			want := strings.Fields(c.remain)
			slices.SortFunc(want, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
			if got := strings.Join(left, " "); got != c.leave || !slices.Equal(remain, want) || w.size != len(remain) {
				t.Errorf("left %q, want %q; remain %v, want %v; size %d", got, c.leave, remain, want, w.size)
			}
		})
	}
}

// BenchmarkCrowd admits to a full crowd of 4,000 devices, of which the last one is idle.
func BenchmarkCrowd(b *testing.B) {
	w := newCrowd(4000, 16)
	w.patient = true
	arrive := func(i, requests int) *conn {
		c := &conn{number: uint64(i), key: fmt.Sprint("device-", i), shaken: true, requests: requests}
		w.admit(c)
		return c
	}
	for i := range w.most - 1 {
		arrive(i, 1)
	}
	arrive(w.most, 0)
	for i := range b.N {
		arrive(w.most+1+i, 0)
	}
}

func shown(c *conn) string {
	key := c.key
	if c.requests > 0 {
		key = strings.ToUpper(key)
	}
	return fmt.Sprintf("%s%d", key, c.number)
}

// TestAddressOf: strangers count against an IPv4 address, in both of its forms, or against a /64.
func TestAddressOf(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.7:1":                  "192.0.2.7",
		"[::ffff:192.0.2.7]:2":         "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:3":     "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::1]:4":     "2001:db8:1:2::/64",
		"[2001:db8:1:3::1]:5":          "2001:db8:1:3::/64",
		"[fe80::1%eth0]:6":             "fe80::/64",
		"[::1]:7":                      "::/64",
		"[64:ff9b::192.0.2.7%eth1]:80": "64:ff9b::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := addressOf(a); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

// TestFit: connections of devices get the descriptors that strangers and the rest of the daemon leave.
func TestFit(t *testing.T) {
	asked := Limits{Strangers: 512, PerAddress: 64, PerDevice: 16, Requests: 32}
	for _, c := range []struct {
		files   uint64
		ok      bool
		want    Limits
		atTotal int
	}{
		{1024, true, Limits{Strangers: 512, PerAddress: 64, PerDevice: 16, Requests: 32, Devices: 256}, 768},
		{784, true, Limits{Strangers: 512, PerAddress: 64, PerDevice: 16, Requests: 32, Devices: 16}, 528},
		{783, false, Limits{Strangers: 263, PerAddress: 64, PerDevice: 16, Requests: 32, Devices: 264}, 527},
		{300, false, Limits{Strangers: 22, PerAddress: 22, PerDevice: 16, Requests: 32, Devices: 22}, 44},
		{64, false, Limits{Strangers: 1, PerAddress: 1, PerDevice: 1, Requests: 32, Devices: 1}, 2},
		{1 << 63, true, Limits{Strangers: 512, PerAddress: 64, PerDevice: 16, Requests: 32, Devices: 1<<20 - 256 - 512}, 1<<20 - 256},
	} {
		got, err := asked.Fit(c.files)
		if got != c.want || (err == nil) != c.ok || got.Strangers+got.Devices != c.atTotal {
			t.Errorf("%d open files: %+v, %v; want %+v", c.files, got, err, c.want)
		}
	}
}
