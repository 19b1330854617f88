package appliance

import (
	"context"

	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
)

// under counts the records that a version of mac or wrap may keep, and those that it
// does: nobody can verify or move these without it.
func (a *Appliance) under(ctx context.Context, key keyring.Key) (total, under uint64, err error) {
	if key.Name == keyring.MAC {
		return a.store.Under(ctx, key.Version)
	}
	clients, err := a.store.ListClients(ctx)
	for _, c := range clients {
		if c.Verifier == nil {
			continue
		}
		total++
		is, err := keylife.IsUnder(ctx, a.keys, key, c.Verifier)
		if err != nil {
			return 0, 0, err
		}
		if is {
			under++
		}
	}
	return total, under, err
}
