package appliance

import (
	"context"

	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// Records lists audit records, at most limit of those after a sequence number.
func (a *Appliance) Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error) {
	return a.store.Records(ctx, after, limit)
}

// LastRecords lists the newest audit records, at most limit, newest first.
func (a *Appliance) LastRecords(ctx context.Context, limit int) ([]audit.Record, error) {
	return a.store.LastRecords(ctx, limit)
}

// Names returns the names of clients and devices as they are now, and of services as the active policy has them. It
// reads each party once, when a record mentions it. A party whose record cannot be read has no name. The caller uses
// the result in one goroutine.
func (a *Appliance) Names(ctx context.Context) audit.Names {
	return audit.Names{
		Client: remembered(func(id protocol.ClientID) string {
			c, _ := a.store.Client(ctx, id) // an error means no name
			return c.Name
		}),
		Device: remembered(func(id protocol.DeviceID) string {
			d, _ := a.store.Device(ctx, id) // an error means no name
			return d.Name
		}),
		Service: a.Rules.Active().Name,
	}
}

// remembered returns a function that calls find once for each id.
func remembered[ID comparable](find func(ID) string) func(ID) string {
	names := map[ID]string{}
	return func(id ID) string {
		name, known := names[id]
		if !known {
			name = find(id)
			names[id] = name
		}
		return name
	}
}
