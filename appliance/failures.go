package appliance

import (
	"context"
	"sync"

	"countersign/appliance/store"
	"countersign/protocol"
)

// failures counts countersignatures that failed before a client signature
// verified. Anybody can make those, so they are one audit record per device and
// minute, never one each.
type failures struct {
	mu     sync.Mutex
	counts map[protocol.DeviceID]map[protocol.Code]uint64 // guarded by mu
}

func (f *failures) count(device protocol.DeviceID, code protocol.Code) { f.add(device, code, 1) }

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

// flushFailures appends the counts; what the store does not take is kept for the
// next minute.
func (a *Appliance) flushFailures(ctx context.Context) {
	for device, codes := range a.failures.take() {
		fields := map[string]any{}
		for code, n := range codes {
			fields[code.String()] = n
		}
		if err := a.store.Append(ctx, store.NewRecord(store.KindFailures, "device/"+device.String(), fields)); err != nil {
			a.log.Error("failure counts could not be written to the audit", "device", device.String(), "error", err)
			for code, n := range codes {
				a.failures.add(device, code, n)
			}
		}
	}
}
