package connections

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"time"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
)

// authority: when ca was compromised and is retired, a device with a certificate by it is refused on the connection
// that it holds open: the harness's device, and a relay.
func authority(r *harness.Report, bin harness.Bin) {
	ctx := r.Context()
	s := open(ctx, r, bin)
	defer s.close()
	phone := filepath.Join(s.Config.Dir, "phone")
	enrolled := s.Phone(ctx, phone, "enrol", "--url", s.URL, harness.Must(s.Invite(ctx, "client", "ann")))
	s.Check(enrolled.Code == 0, "a phone enrols: exit code %d", enrolled.Code)
	byRelay := func() harness.Result {
		return s.Phone(ctx, phone, "authorize", "--link", s.Link, "--service", "100", "--yes")
	}

	s.authorize(ctx, 1) // from here on both hold a connection
	before := byRelay()
	s.Check(before.Code == 0, "over the relay: exit code %d", before.Code)
	s.MustCtl(ctx, "key", "rotate", "ca")
	s.MustCtl(ctx, "key", "activate", "ca")
	s.authorize(ctx, 1)
	r.Check(byRelay().Code == 0, "an accepted ca: both are served")

	connections := s.metric(ctx, `countersign_api_connections{kind="device"}`)
	s.MustCtl(ctx, "key", "retire", "ca@1", "--compromised", "--early", "--yes")
	_, err := s.once(ctx)
	var refusal *device.Refusal
	refused := errors.As(err, &refusal) && refusal.Status == http.StatusForbidden && refusal.Code == protocol.CodeDevice
	s.Check(refused, "a retired ca: the device is refused on its connection: %v", err)
	after := byRelay()
	s.Check(after.Code != 0, "a retired ca: over the relay: %d %s", after.Code, after.Stderr)
	s.Check(s.ends(ctx, connections) == nil, "the %.0f connections end", connections)

	fresh := harness.Must(device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, harness.Must(s.Invite(ctx, "device", "fresh"))))
	s.device.Close()
	s.device = fresh
	_, err = s.once(ctx)
	s.Check(err == nil, "a device that enrols now is served%s", because(err))
}

// ends waits until so many connections were ended because of their certificates.
func (s *stage) ends(ctx context.Context, connections float64) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return harness.Until(ctx, "the end of connections", func() (bool, error) {
		return s.metric(ctx, `countersign_api_connections_closed_total{reason="certificate"}`) >= connections, nil
	})
}
