package change

import (
	"slices"
	"strings"
	"testing"

	"countersign/policy"
)

// TestEffectOfEveryKind: no two kinds of change have the same words, and the words name the party, key or administrator.
func TestEffectOfEveryKind(t *testing.T) {
	v := readVector(t)
	seen := map[string]policy.Kind{}
	for _, k := range policy.Kinds() {
		r, err := Parse(v.Kinds[k.String()])
		if err != nil {
			t.Fatal(err)
		}
		lines := r.Effect()
		all := strings.Join(lines, "; ")
		if other, taken := seen[all]; taken || strings.Contains(all, k.String()) {
			t.Errorf("%s: %q, as %s", k, all, other)
		}
		if name := r.Parameters.Text("name"); !strings.Contains(lines[0], name) {
			t.Errorf("%s of %s: %q", k, name, lines[0])
		}
		seen[all] = k
	}
}

func TestEffect(t *testing.T) {
	for want, r := range map[string]Request{
		"revokes client vera if it is enrolled, withdraws its open code, and invites it anew|" +
			"roles: approver, night (stays)|the activation code is good for 24h from then on": {
			Kind: policy.ClientReplace, Parameters: Parameters{
				"name": "vera", "ttl_s": uint64(86400), "roles": []any{"night", "approver"}, "was_roles": []any{"approver", "night"},
			},
		},
		"revokes client vera if it is enrolled, withdraws its open code, and invites it anew|" +
			"roles: approver becomes none|the activation code is good for 1h30m from then on": {
			Kind: policy.ClientReplace, Parameters: Parameters{
				"name": "vera", "ttl_s": uint64(5400), "roles": []any{}, "was_roles": []any{"approver"},
			},
		},
		"revokes device gate-7 if it is enrolled, withdraws its open code, and invites it anew|" +
			`display name: "Gate" (stays)|floor: level 1 becomes level 2|the activation code is good for 30s from then on`: {
			Kind: policy.DeviceReplace, Parameters: Parameters{
				"name": "gate-7", "ttl_s": uint64(30), "display": "Gate", "was_display": "Gate", "floor": uint64(2), "was_floor": uint64(1),
			},
		},
		"invites client new|roles: none|the activation code is good for 24h from then on": {
			Kind: policy.ClientInvite, Parameters: Parameters{"name": "new", "ttl_s": uint64(86400), "roles": []any{}},
		},
		"rejects everything that was made with ca@2|before its overlap ends: requests in progress with it fail|" +
			"permanently, as compromised: it cannot be activated again": {
			Kind: policy.KeyRetire, Parameters: Parameters{"name": "ca", "version": uint64(2), "early": true, "compromised": true},
		},
		"puts root@2 into use at once|every earlier version is rejected from then on": {
			Kind: policy.RootRotate, Parameters: Parameters{"verb": "activate", "version": uint64(2), "rules_out": true},
		},
		"accepts countersignatures of the suspended administrator cat again": {
			Kind: policy.AdminAdd, Parameters: Parameters{"name": "cat", "resume": true},
		},
	} {
		if got := r.Effect(); !slices.Equal(got, strings.Split(want, "|")) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
