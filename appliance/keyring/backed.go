package keyring

import (
	"context"
	"crypto/ecdh"

	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
)

// Backed is a token whose new keys each get a sealed copy for a backup key. A copy can
// be made only while its key is born (SP 800-57 part 1 §8.2.2.1: backup).
type Backed struct {
	hsm.Token
	Recipient *ecdh.PublicKey // on P-256; nil: no copies
}

// born makes a key and puts it into its row.
func born(ctx context.Context, token hsm.Token, row store.Key) (store.Key, error) {
	spec := hsm.KeySpec{Label: Label(row.Name, row.Version), Usage: usages[row.Name]}
	backed, ok := token.(Backed)
	if !ok || backed.Recipient == nil {
		made, err := token.Generate(ctx, spec)
		if err != nil {
			return row, err
		}
		return rowOf(made, row)
	}
	spec.Recipients = []*ecdh.PublicKey{backed.Recipient}
	made, err := token.Generate(ctx, spec)
	if err != nil {
		return row, err
	}
	point, err := protocol.CompressPoint(backed.Recipient.Bytes())
	if err != nil {
		return row, err
	}
	row.Sealed, row.SealedFor = made.Sealed[0], point[:]
	return rowOf(made, row)
}
