package appliance

import (
	"context"

	"countersign/appliance/change"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
)

// under counts the records that a version of mac or wrap may keep, and those that it
// does: nobody can check or move these without it.
func (a *Appliance) under(ctx context.Context, key keyring.Key) (total, under int, err error) {
	if key.Name == keyring.Wrap {
		return a.verifiersUnder(ctx, key)
	}
	macs, err := a.macs(ctx)
	for _, m := range macs {
		is, err := a.keys.CheckMAC(ctx, key, m.input, m.mac)
		if err != nil {
			return 0, 0, err
		}
		if is {
			under++
		}
	}
	return len(macs), under, err
}

func (a *Appliance) verifiersUnder(ctx context.Context, wrap keyring.Key) (total, under int, err error) {
	clients, err := a.store.ListClients(ctx)
	for _, c := range clients {
		if c.Verifier == nil {
			continue
		}
		total++
		is, err := a.keys.IsUnder(ctx, wrap, c.Verifier)
		if err != nil {
			return 0, 0, err
		}
		if is {
			under++
		}
	}
	return total, under, err
}

// recordMAC is one stored MAC and what it covers.
type recordMAC struct{ input, mac []byte }

// macs are those of clients, administrators and the admin socket's words in requests
// that are not over.
func (a *Appliance) macs(ctx context.Context) ([]recordMAC, error) {
	clients, err := a.store.ListClients(ctx)
	if err != nil {
		return nil, err
	}
	admins, err := a.store.ListAdmins(ctx)
	if err != nil {
		return nil, err
	}
	all, err := a.words(ctx)
	for _, c := range clients {
		all = append(all, recordMAC{recordInput(c), c.MAC})
	}
	for _, one := range admins {
		all = append(all, recordMAC{adminInput(one), one.MAC})
	}
	return all, err
}

func (a *Appliance) words(ctx context.Context) (all []recordMAC, err error) {
	changes, err := a.store.ListChanges(ctx, changesShown)
	for _, row := range changes {
		isOpen := row.State == store.ChangeOpen && a.now().Before(row.ExpiresAt)
		if !isOpen && row.State != store.ChangeTaken {
			continue
		}
		for _, s := range row.Signatures {
			if s.Signer == [8]byte{} {
				all = append(all, recordMAC{wordInput(change.HashOf(row.Document)), s.Signature})
			}
		}
	}
	return all, err
}
