package trust

import (
	"slices"

	"countersign/protocol"
)

// EarlierRoot is a root that another one has replaced. A client keeps its certificates for receipts, and uses them for
// nothing else (PROTOCOL.md §2.2).
type EarlierRoot struct {
	Number    uint64
	Key       protocol.PublicKey
	Decisions []Key  // KeyCerts of decision
	GivenUp   uint64 // Unix seconds when it was given up as compromised; 0: another root replaced it by routine
}

// Reasons of a RootCert, field 4. Every one but 0 gives up the root before it.
const (
	ReasonRoutine     = 0
	ReasonCompromised = 1
)

// replaced returns the pinned root as an earlier one.
func (t State) replaced() EarlierRoot {
	e := EarlierRoot{Number: t.RootNumber, Key: t.Root}
	for _, k := range t.held() {
		if k.Use == UseDecision {
			e.Decisions = append(e.Decisions, k)
		}
	}
	return e
}

// held returns the KeyCerts by the pinned root.
func (t State) held() []Key {
	var keys []Key
	for use := UseKEM; use <= UseClientCA; use++ {
		if k, ok := t.Keys[use]; ok {
			keys = append(keys, k)
		}
	}
	return slices.Concat(keys, t.Earlier, t.Later)
}

// ReceiptKey is a key of decision that may have signed a receipt.
type ReceiptKey struct {
	Key
	Root    protocol.PublicKey // certified the key
	GivenUp uint64             // Unix seconds when the key or its root was given up as compromised; 0: it was not
}

// ReceiptKeys returns the keys of decision by the pinned root and by earlier ones, to verify receipts with. kept is the
// KeyCert that the client keeps with the receipt, or nil. It ignores a KeyCert of another root.
func (t State) ReceiptKeys(kept []byte) []ReceiptKey {
	var keys []ReceiptKey
	for _, root := range append([]EarlierRoot{t.replaced()}, t.EarlierRoots...) {
		if k, err := VerifyKeyCert(kept, root.Key); err == nil && k.Use == UseDecision {
			root.Decisions = append(slices.Clone(root.Decisions), Key{k, kept})
		}
		for _, k := range root.Decisions {
			keys = append(keys, ReceiptKey{Key: k, Root: root.Key, GivenUp: root.GivenUp})
		}
	}
	for i, k := range keys {
		for _, other := range keys { // epochs continue across roots
			if ruledOut(k.Epoch, other.MinEpoch) && (keys[i].GivenUp == 0 || other.NotBefore < keys[i].GivenUp) {
				keys[i].GivenUp = other.NotBefore
			}
		}
	}
	return keys
}
