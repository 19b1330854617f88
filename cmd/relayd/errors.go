package main

import (
	"errors"
	"os"

	"countersign/internal/fault"
	"countersign/protocol"
	"countersign/relay"
	"countersign/relay/journal"
	"countersign/relay/uplink"
)

// faults maps errors of the relay to rows of the table of errors.
var faults = fault.Sentinels{
	{uplink.ErrNotEnrolled, fault.DeviceNotEnrolled},
	{uplink.ErrEnrolled, fault.DeviceEnrolled},
	{uplink.ErrLocked, fault.StateInUse},
	{uplink.ErrCA, fault.NoCA},
	{uplink.ErrClock, fault.DeviceClock},
	{relay.ErrOrderSocket, fault.NoOrderSocket},
	{relay.ErrLink, fault.NoLink},
	{journal.ErrCorrupt, fault.JournalDamaged},
	{protocol.CodeServerUnreachable, fault.NoAnswerOfAppliance},
	{protocol.CodeTimeout, fault.NoAnswerOfAppliance},
	{protocol.CodeBusy, fault.ApplianceBusy},
	{protocol.CodeHSM, fault.ApplianceBusy},
}

// failure adds the exit code and hint to an error of the relay.
func failure(err error) error {
	if row, ok := faults.Find(err); ok {
		return row.Of(err)
	}
	var answer *uplink.StatusError
	var path *os.PathError
	switch {
	case errors.As(err, &answer):
		return fault.EnrolmentRefused.Of(err)
	case errors.Is(err, protocol.CodeCertificate):
		return fault.WrongAppliance.Of(err)
	case errors.As(err, &path):
		return fault.StateUnreadable.Of(err)
	}
	return err
}
