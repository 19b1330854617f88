package main

import (
	"context"
	"fmt"

	"countersign/protocol/message"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/phone"
	"countersign/softhsm-test/rig/wire"
)

// insistent is a phone at byte level that applies under whatever kem epoch it likes.
type insistent struct{ *phone.Phone }

func newInsistent(ctx context.Context, a *rig.Appliance) (*insistent, error) {
	code, err := a.Invite(ctx, "client", "insist")
	if err != nil {
		return nil, err
	}
	p, err := phone.Enrol(ctx, a.URL, code)
	return &insistent{p}, err
}

// answered is the kind of message that an application under the phone's kem epoch is
// answered with.
func (i *insistent) answered(ctx context.Context, link string) (kind byte, answer []byte, err error) {
	session, err := i.Apply(i.Next(100).Marshal())
	if err != nil {
		return 0, nil, err
	}
	if answer, err = wire.Ask(ctx, link, session.M1); err != nil {
		return 0, nil, err
	}
	kind, err = message.Kind(answer)
	return kind, answer, err
}

// follow takes a key update.
func (i *insistent) follow(mu []byte) error {
	next, err := i.Trust.Update(mu, i.Trust.Time(now()))
	if err != nil {
		return fmt.Errorf("following a key update: %w", err)
	}
	i.Trust = next
	return nil
}
