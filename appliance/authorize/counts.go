package authorize

import (
	"cmp"
	"context"
	"sync"

	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// failures counts countersignatures that failed before a client signature verified. Anyone
// can cause those, so they make one audit record per device and minute, not one each.
type failures struct {
	mu     sync.Mutex
	counts map[protocol.DeviceID]map[protocol.Code]uint64 // guarded by mu
}

func (f *failures) add(device protocol.DeviceID, code protocol.Code, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = map[protocol.DeviceID]map[protocol.Code]uint64{}
	}
	if f.counts[device] == nil {
		f.counts[device] = map[protocol.Code]uint64{}
	}
	f.counts[device][code] += n
}

func (f *failures) take() map[protocol.DeviceID]map[protocol.Code]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := f.counts
	f.counts = nil
	return counts
}

// Bounds of refusals: clients that are counted at once, and serials of a client that are recorded
// for one code in a minute.
const (
	refusedClients = 4096
	refusedSerials = 3
)

// refusals counts refusals after a client signature verified. The first of a client, serial and code is
// recorded in full. A phone that is locked, or in other hands, can repeat it any number of times without
// spending a serial, so all repeats of a minute make one audit record per client. Refusals of clients
// beyond the bound, the first ones too, make one record for all of them.
type refusals struct {
	most int // clients that are counted at once; 0: refusedClients

	mu      sync.Mutex
	clients map[protocol.ClientID]refused // guarded by mu
	others  refused                       // of clients beyond most, without serials; guarded by mu
}

// refusal is a reason why a serial was not spent.
type refusal struct {
	serial protocol.Serial // zeros: any beyond refusedSerials
	code   protocol.Code
}

// refused counts the refusals of one client that were not recorded.
type refused map[refusal]uint64

// add counts a refusal. It reports whether the caller has to record it in full instead: it is the first
// of its serial and code, and its client is within the bound.
func (r *refusals) add(client protocol.ClientID, one refusal) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := r.of(client)
	if counts == nil {
		r.addOthers(refused{one: 1})
		return false
	}
	if _, known := counts[one]; !known {
		if counts.serials(one.code) < refusedSerials {
			counts[one] = 0
			return true
		}
		one.serial = protocol.Serial{}
	}
	counts[one]++
	return false
}

// serials returns how many serials were recorded for a code.
func (r refused) serials(code protocol.Code) (n int) {
	for one := range r {
		if one.code == code && one.serial != (protocol.Serial{}) {
			n++
		}
	}
	return n
}

// lost notes that the record of a first refusal could not be written: the next one is recorded.
func (r *refusals) lost(client protocol.ClientID, one refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.clients[client][one]
	delete(r.clients[client], one)
	if n > 0 {
		r.clients[client][refusal{code: one.code}] += n
	}
}

// of returns the counts of a client, or nil if there are too many clients; the caller holds the lock.
func (r *refusals) of(client protocol.ClientID) refused {
	if r.clients[client] == nil && len(r.clients) < cmp.Or(r.most, refusedClients) {
		r.put(client, refused{})
	}
	return r.clients[client]
}

// addOthers adds counts of clients beyond the bound; the caller holds the lock.
func (r *refusals) addOthers(counts refused) {
	if r.others == nil {
		r.others = refused{}
	}
	for one, n := range counts {
		r.others[refusal{code: one.code}] += n
	}
}

// put stores the counts of a client; the caller holds the lock.
func (r *refusals) put(client protocol.ClientID, counts refused) {
	if r.clients == nil {
		r.clients = map[protocol.ClientID]refused{}
	}
	r.clients[client] = counts
}

// take returns the counts and begins a new minute. A refusal that was counted does not become a first one again in the
// next minute; every other one is forgotten.
func (r *refusals) take() (taken map[protocol.ClientID]refused, others refused) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, others := r.clients, r.others
	r.clients, r.others = nil, nil
	taken = map[protocol.ClientID]refused{}
	for client, counts := range before {
		counted, kept := refused{}, refused{}
		for one, n := range counts {
			if n > 0 {
				counted[one] = n
			}
			if n > 0 && one.serial != (protocol.Serial{}) {
				kept[one] = 0
			}
		}
		if len(counted) > 0 {
			taken[client] = counted
		}
		if len(kept) > 0 {
			r.put(client, kept)
		}
	}
	return taken, others
}

// again adds counts of a client that could not be written.
func (r *refusals) again(client protocol.ClientID, counts refused) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.of(client)
	if known == nil {
		r.addOthers(counts)
		return
	}
	for one, n := range counts {
		known[one] += n
	}
}

// othersAgain adds counts of clients beyond the bound that could not be written.
func (r *refusals) othersAgain(counts refused) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addOthers(counts)
}

// fields returns the counts as the fields of a record: by code, and by serial.
func (r refused) fields() map[string]any {
	fields := map[string]any{}
	for one, n := range r {
		serials, ok := fields[one.code.String()].(map[string]any)
		if !ok {
			serials = map[string]any{}
			fields[one.code.String()] = serials
		}
		name := "further serials"
		if one.serial != (protocol.Serial{}) {
			name = one.serial.String()
		}
		serials[name] = n
	}
	return fields
}

// FlushCounts writes the counts of failures and refusals to the audit. Counts that the store does not
// take are kept for the next call.
func (a *Service) FlushCounts(ctx context.Context) {
	for device, codes := range a.failures.take() {
		fields := map[string]any{}
		for code, n := range codes {
			fields[code.String()] = n
		}
		if !a.append(ctx, audit.NewRecord(audit.KindFailures, "device/"+device.String(), fields)) {
			for code, n := range codes {
				a.failures.add(device, code, n)
			}
		}
	}
	clients, others := a.refusals.take()
	for client, counts := range clients {
		if !a.append(ctx, audit.NewRecord(audit.KindRepeats, "client/"+client.String(), counts.fields())) {
			a.refusals.again(client, counts)
		}
	}
	if len(others) > 0 && !a.append(ctx, audit.NewRecord(audit.KindRepeats, "other clients", others.fields())) {
		a.refusals.othersAgain(others)
	}
}

func (a *Service) append(ctx context.Context, counts audit.Record) bool {
	err := a.store.Append(ctx, counts)
	if err != nil {
		a.log.Error("counts could not be written to the audit", "kind", counts.Kind, "subject", counts.Subject, "error", err)
	}
	return err == nil
}
