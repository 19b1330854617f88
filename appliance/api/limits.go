package api

import "fmt"

// Limits bound what peers hold at once.
type Limits struct {
	Strangers  int // connections without a certificate in force
	PerAddress int // of them, from one IPv4 address or IPv6 /64
	PerDevice  int // connections of one device
	Requests   int // of one device in progress; half of them may begin an authorization
	Devices    int // connections of all devices; Fit sets it
}

// otherFiles is the number of descriptors that are kept for everything else: store, workers, admin socket, ops, log.
const otherFiles = 256

// Fit sets the number of connections of devices to what remains of the descriptors that the process may open, so
// that connections never take those of the admin socket and of the store. If the limits do not fit, Fit returns
// lower ones, and an error that says so.
func (l Limits) Fit(files uint64) (Limits, error) {
	const enough = 1 << 20 // more would not be used
	room := int(min(files, enough)) - otherFiles
	if l.Devices = room - l.Strangers; l.Devices >= l.PerDevice {
		return l, nil
	}
	err := fmt.Errorf("%d open files do not suffice for api.strangers = %d, connections_per_device = %d and %d others: "+
		"raise the limit (LimitNOFILE=, ulimit -n) or lower these keys", files, l.Strangers, l.PerDevice, otherFiles)
	room = max(room, 2)
	l.Strangers = min(l.Strangers, room/2)
	l.PerAddress = min(l.PerAddress, l.Strangers)
	l.Devices = room - l.Strangers
	l.PerDevice = min(l.PerDevice, l.Devices)
	return l, err
}
