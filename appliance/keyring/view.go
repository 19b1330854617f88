package keyring

import (
	"crypto/x509"
	"maps"
	"slices"
	"time"

	"countersign/hsm"
	"countersign/protocol"
)

// Purpose of a key, in a few words: PROTOCOL.md §2.1.
func Purpose(name string) string { return purposes[name] }

var purposes = map[string]string{
	Root: "certifies the other keys", KEM: "phones encrypt to it", Decision: "signs decisions and receipts",
	CA: "issues X.509 certificates", ClientCA: "issues client certificates", Enrol: "takes password verifiers in",
	Wrap: "keeps password verifiers", MAC: "seals, handles, pairwise ids", Audit: "signs checkpoints of the audit log",
}

// UsageOf is what a key of this name does on the token.
func UsageOf(name string) hsm.Usage { return usages[name] }

// SPKI is the key pair's SubjectPublicKeyInfo in DER, RFC 5280 §4.1.2.7.
func (k Key) SPKI() ([]byte, error) {
	public, err := protocol.PublicKey(k.Public).ECDSA()
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(public)
}

// View is a key version as it stands at a moment.
type View struct {
	Key
	State      State
	Accepted   bool      // what was made with or for it is taken
	OverlapEnd time.Time // when it may be retired; zero while it is in use, or before
}

// Views are all key versions at now, by name and version.
func (r *Keyring) Views(now time.Time) []View {
	v := r.live.Load()
	var out []View
	for _, k := range v.all() {
		out = append(out, v.view(k, now))
	}
	return out
}

func (v *ring) view(k Key, now time.Time) View {
	w := View{Key: k, State: v.state(k, now), Accepted: v.accepted(k, now)}
	in, err := v.current(k.Name, now)
	if err == nil && k.Version != in.Version && k.begun(now) && w.Accepted {
		w.OverlapEnd = v.overlapEnd(k, in)
	}
	return w
}

// Preview is how the key versions of a plan stand once it is carried out.
func (r *Keyring) Preview(p Plan) []View {
	next := r.live.Load().after(p)
	var out []View
	for _, e := range p.Edits {
		k, _ := next.find(e.Name, e.Version)
		out = append(out, next.view(k, p.now))
	}
	return out
}

// Shown is how the key versions of a plan stand now.
func (r *Keyring) Shown(p Plan, now time.Time) []View {
	v := r.live.Load()
	var out []View
	for _, e := range p.Edits {
		if k, ok := v.find(e.Name, e.Version); ok {
			out = append(out, v.view(k, now))
		}
	}
	return out
}

// after is the ring with the edits of a plan.
func (v *ring) after(p Plan) *ring {
	next := &ring{keys: maps.Clone(v.keys), settings: v.settings}
	if p.Roots != nil {
		next.settings.RootCerts = p.Roots
	}
	for _, e := range p.Edits {
		row := Key{Key: e.Key, OnToken: true}
		old, ok := v.find(e.Name, e.Version)
		if ok {
			row.Point, row.OnToken = old.Point, old.OnToken && e.DestroyedAt.IsZero()
		}
		kept := slices.DeleteFunc(slices.Clone(next.keys[e.Name]), func(k Key) bool { return k.Version == e.Version })
		next.keys[e.Name] = append(kept, row)
		slices.SortFunc(next.keys[e.Name], func(a, b Key) int { return int(a.Version) - int(b.Version) })
	}
	return next
}
