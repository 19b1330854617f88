package rotate

import (
	"context"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
	"countersign/softhsm-test/harness/phone"
)

// insistent is a phone at byte level that applies under any kem epoch.
type insistent struct{ *phone.Phone }

func newInsistent(ctx context.Context, a *harness.Appliance) *insistent {
	code := harness.Must(a.Invite(ctx, "client", "insist"))
	return &insistent{harness.Must(phone.Enrol(ctx, a.URL, code))}
}

// answered is the kind of message that an application under the phone's kem epoch is
// answered with.
func (i *insistent) answered(ctx context.Context, at string) (kind byte, answer []byte) {
	session := harness.Must(i.Apply(i.Next(100).Marshal()))
	answer = harness.Must(link.Ask(ctx, at, session.M1))
	return harness.Must(protocol.Kind(answer)), answer
}

// follow takes a key update.
func (i *insistent) follow(mu []byte) {
	i.Trust = harness.Must(i.Trust.Update(mu, i.Trust.Time(now())))
}
