package change

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/policy"
)

// Effect says in words what a request does, from its bytes: first what happens, then one line for each detail that a
// signer should compare. Names in it are as the request has them: a caller escapes control characters for a terminal.
func (r Request) Effect() []string {
	p := r.Parameters
	name := p.Text("name")
	switch r.Kind {
	case policy.ClientInvite, policy.ClientReplace, policy.DeviceInvite, policy.DeviceReplace:
		return r.invitation()
	case policy.ClientResume, policy.DeviceResume:
		noun, _, _ := strings.Cut(r.Kind.String(), ".")
		return []string{fmt.Sprintf("accepts the suspended %s %s again", noun, name)}
	case policy.ClientUnlock:
		return []string{fmt.Sprintf("accepts passwords of client %s again after %d wrong ones", name, p.Number("wrong"))}
	case policy.AdminAdd:
		if p.Truth("resume") {
			return []string{fmt.Sprintf("accepts countersignatures of the suspended administrator %s again", name)}
		}
		return []string{fmt.Sprintf("makes %s an administrator, who can countersign with key %x", name, p.Bytes("public_key"))}
	case policy.AdminRevoke:
		return []string{fmt.Sprintf("revokes administrator %s permanently", name)}
	case policy.PolicyApply:
		return []string{"puts the policy document of this request into force"}
	case policy.StoreBackup:
		return []string{"allows one copy of the database, with all sealed copies of keys"}
	case policy.KeyBackup:
		if p.Truth("partial") {
			return []string{"allows one backup of the keys, without those that have no sealed copy"}
		}
		return []string{"allows one backup of all keys"}
	}
	return r.keyStep()
}

// keyStep says what a step of a key does.
func (r Request) keyStep() []string {
	p := r.Parameters
	name := p.Text("name")
	if r.Kind == policy.RootRotate {
		name = "root"
	}
	key := fmt.Sprintf("%s@%d", name, p.Number("version"))
	switch r.step() {
	case "create":
		return []string{"makes the first version of a key, " + key}
	case "rotate":
		lines := []string{"makes or certifies " + key + ", which then waits for activation"}
		if p.Truth("compromised") {
			lines = append(lines, "the earlier versions were compromised: everyone who learns of "+key+" rejects them once it is active")
		}
		return lines
	case "activate":
		lines := []string{"puts " + key + " into use at once"}
		if p.Truth("rules_out") {
			lines = append(lines, "every earlier version is rejected from then on")
		}
		return lines
	case "retire":
		lines := []string{"rejects everything that was made with " + key}
		if p.Truth("early") {
			lines = append(lines, "before its overlap ends: requests in progress with it fail")
		}
		if p.Truth("compromised") {
			lines = append(lines, "permanently, as compromised: it cannot be activated again")
		}
		return lines
	case "resume":
		return []string{"uses the suspended " + key + " again"}
	case "destroy":
		return []string{"deletes " + key + " from its token permanently"}
	}
	return []string{r.Kind.String() + " " + key}
}

// step returns the verb of a step of a key, which the kind or a parameter says.
func (r Request) step() string {
	if verb := r.Parameters.Text("verb"); verb != "" {
		return verb
	}
	_, verb, _ := strings.Cut(r.Kind.String(), ".")
	return verb
}

// invitation says whom a request invites, with what, and what stays as it was.
func (r Request) invitation() []string {
	p := r.Parameters
	noun, verb, _ := strings.Cut(r.Kind.String(), ".")
	name := p.Text("name")
	lines := []string{fmt.Sprintf("invites %s %s", noun, name)}
	if verb == "replace" || p.Truth("replace") {
		lines[0] = fmt.Sprintf("revokes %s %s if it is enrolled, withdraws its open code, and invites it anew", noun, name)
	}
	if noun == "client" {
		lines = append(lines, p.stays("roles", "roles", func(key string) string { return roleWords(p.Texts(key)) }))
	} else {
		lines = append(lines,
			p.stays("display name", "display", func(key string) string { return fmt.Sprintf("%q", p.Text(key)) }),
			p.stays("floor", "floor", func(key string) string { return fmt.Sprintf("level %d", p.Number(key)) }))
	}
	ttl := time.Duration(min(p.Number("ttl_s"), 1<<32)) * time.Second
	return append(lines, fmt.Sprintf("the activation code is good for %s from then on", hours(ttl)))
}

// stays says what a party gets by a parameter, and beside it what the one before it had, if the request has that.
func (p Parameters) stays(what, key string, words func(key string) string) string {
	now, was := words(key), words("was_"+key)
	switch {
	case p["was_"+key] == nil:
		return what + ": " + now
	case now == was:
		return what + ": " + now + " (stays)"
	}
	return what + ": " + was + " becomes " + now
}

func roleWords(roles []string) string {
	if len(roles) == 0 {
		return "none"
	}
	roles = slices.Clone(roles)
	slices.Sort(roles)
	return strings.Join(roles, ", ")
}

// hours formats a duration without the zero minutes and seconds that [time.Duration.String] adds.
func hours(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
