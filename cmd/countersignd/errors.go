package main

import (
	"errors"
	"io/fs"
	"syscall"

	"countersign/appliance/anchor"
	"countersign/appliance/dev"
	"countersign/appliance/keyring"
	"countersign/appliance/keyring/chain"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/recovery/restore"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/pool"
	"countersign/internal/config"
	"countersign/internal/fault"
)

// errDisk: an fsync failed, or the database is corrupt.
var errDisk = errors.New("the store's disk failed")

// exits maps errors to rows of the table of errors.
var exits = fault.Sentinels{
	{pool.ErrGuard, fault.PINGuard},
	{hsm.ErrPIN, fault.PINRefused},
	{hsm.ErrLocked, fault.InitLocked},
	{anchor.ErrThere, fault.AnchorThere},
	{anchor.ErrDamaged, fault.AnchorDamaged},
	{anchor.ErrNone, fault.AnchorNone},
	{anchor.ErrBack, fault.AnchorAhead},
	{anchor.ErrBranch, fault.AnchorBranch},
	{anchor.ErrOther, fault.AnchorOther},
	{chain.ErrUnpinned, fault.Unpinned},
	{chain.ErrRoots, fault.ForeignRoots},
	{chain.ErrRow, fault.ForeignKey},
	{restore.ErrSealedBefore, fault.SealedBefore},
	{errExpect, fault.OtherList},
	{sqlite.ErrNewer, fault.NewerStore},
	{sqlite.ErrMigrate, fault.UnsealedStore},
	{store.ErrForged, fault.Forged},
	{errInitialized, fault.Initialized},
	{backup.ErrFile, fault.BadBackup},
	{backup.ErrRuledOut, fault.RuledOut},
	{backup.ErrOther, fault.OtherAppliance},
	{backup.ErrTokenUsed, fault.RestoreTokenUsed},
	{backup.ErrShares, fault.BackupShares},
	{backup.ErrCopy, fault.BadCopy},
	{restore.ErrStoreExists, fault.StoreThere},
	{restore.ErrRunning, fault.RestoreRunning},
	{restore.ErrOldMAC, fault.RestoreOldMAC},
	{restore.ErrLost, fault.RestoreLost},
	{restore.ErrUnsealed, fault.RestoreUnsealed},
	{restore.ErrInterrupted, fault.RestoreInterrupted},
	{errTokenUsed, fault.TokenUsed},
	{hsm.ErrUnsupported, fault.Unsupported},
	{config.ErrTokenDenied, fault.TokenDenied},
	{hsm.ErrUnavailable, fault.NoHSM},
	{errDisk, fault.DiskFailed},
	{keyring.ErrNotInitialized, fault.NotInitialized},
	{keyuse.ErrOldStore, fault.OldStore},
	{dev.ErrForeign, fault.DevForeign},
	{rules.ErrAuto, fault.AutoNeedsVotes},
	{errOtherDomain, fault.OtherDomain},
	{restore.ErrDomain, fault.OtherDomain},
	{restore.ErrNoStatement, fault.NoStatement},
	{restore.ErrFiles, fault.RestoreFiles},
	{syscall.EADDRINUSE, fault.AddressInUse},
	{syscall.EADDRNOTAVAIL, fault.AddressForeign},
	{dev.ErrInUse, fault.DevInUse},
	{sqlite.ErrEmpty, fault.StoreEmpty},
	{fs.ErrPermission, fault.NoPermission},
	{sqlite.ErrLocked, fault.StoreLocked},
	{store.ErrUnavailable, fault.NoStoreAccess},
}

// explain gives an error its row of the table. An error that has one keeps it.
func explain(err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	if row, ok := exits.Find(err); ok {
		return row.Of(err)
	}
	return err
}
