package main

import (
	"errors"
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
	"countersign/internal/cli"
)

// errDisk: an fsync failed, or the database is corrupt.
var errDisk = errors.New("the store's disk failed")

const unpinnedHint = "run countersignd anchor --root KEY, for countersignd dev with --dir DIR; take KEY from the output of init or from a phone, never from this store"

const olderHint = "put back the store that this host had; check trust.root or --root for a typo, but never change them, or the anchor, to match a store"

// exits maps errors to exit codes and hints.
var exits = []struct {
	err  error
	code cli.Code
	hint string
}{
	{pool.ErrGuard, cli.IO, "state_dir must be readable and writable, with free space: without the file pin-refused no PIN is tried"},
	{hsm.ErrPIN, cli.Auth, "check hsm.pin, then run countersignctl hsm unlock: until then it is not tried again, so that the token does not lock"},
	{hsm.ErrLocked, cli.Auth, "init reads the PIN from a file, a credential, a descriptor or a prompt: name one in hsm.pin"},
	{anchor.ErrThere, cli.Failed, "an appliance was here: restore it; if init was interrupted and no device uses that root, move the anchor away"},
	{anchor.ErrDamaged, cli.IO, "move it away and run countersignd anchor --root KEY; do not use an older copy, which has an older revision"},
	{anchor.ErrNone, cli.Failed, unpinnedHint},
	{anchor.ErrBack, cli.BadSignature, olderHint},
	{anchor.ErrBranch, cli.BadSignature, olderHint},
	{anchor.ErrOther, cli.BadSignature, olderHint},
	{chain.ErrUnpinned, cli.Failed, unpinnedHint},
	{chain.ErrRoots, cli.BadSignature, olderHint},
	{chain.ErrRow, cli.BadSignature, "put back the store that this host had: only the appliance itself changes its keys"},
	{restore.ErrSealedBefore, cli.BadSignature, "put back the store that this host had: countersignd seals a store only once"},
	{errExpect, cli.Failed, "read the list again: the store, or what can be verified of it, has changed"},
	{sqlite.ErrNewer, cli.Failed, "run the release that wrote the database, or a later one; this release reads only a copy from before the upgrade"},
	{sqlite.ErrMigrate, cli.Failed, "stop every countersignd, copy store.path away, and run countersignd migrate --seal --root KEY"},
	{store.ErrForged, cli.BadSignature, "another program wrote to the database; countersignd doctor names the records: stop the daemon, find the program and restore a good copy (docs/RECOVERY.md)"},
	{errInitialized, cli.Failed, "run countersignd serve"},
	{backup.ErrFile, cli.Failed, "the file was changed or cut off, or is another kind: use another copy"},
	{backup.ErrRuledOut, cli.Failed, "use a backup and a copy of the database from after that key was replaced"},
	{backup.ErrOther, cli.Failed, "backup, database and root must belong to one appliance and one history"},
	{backup.ErrTokenUsed, cli.Failed, "restore onto a token that was just initialized; its label goes into hsm.token_label"},
	{backup.ErrShares, cli.Denied, "countersignctl key custodians check prints the backup key of a share"},
	{backup.ErrCopy, cli.Failed, "nothing was restored; an older backup may have an intact copy"},
	{restore.ErrStoreExists, cli.Failed, "if that appliance is really lost, move its store away first"},
	{restore.ErrRunning, cli.Unavailable, "wait until it is done"},
	{restore.ErrOldMAC, cli.Failed, "use a key backup from after that rotation; if there is none, restore on a host without an anchor"},
	{restore.ErrLost, cli.Failed, "--partial restores the others and records these as destroyed: they were created before the backup key"},
	{restore.ErrUnsealed, cli.Failed, "use the copy that countersignctl store backup wrote, with its .sig"},
	{restore.ErrInterrupted, cli.Failed, "run countersignd restore again with the same files"},
	{errTokenUsed, cli.Failed, "use an empty token; after an interrupted init, initialize the token again"},
	{hsm.ErrUnsupported, cli.Failed, "countersignctl hsm probe shows the abilities of the module; one that makes no sealed copies needs backup.recipient = \"\", and its keys cannot be restored"},
	{hsm.ErrUnavailable, cli.Unavailable, "check hsm.module, hsm.token_label and hsm.worker_binary, and that the token is present (pkcs11-tool --module … -L); two of one label need hsm.token_serial"},
	{errDisk, cli.IO, "check the disk below store.path; nothing that was acknowledged is lost"},
	{keyring.ErrNotInitialized, cli.Failed, "run countersignd init first"},
	{keyuse.ErrOldStore, cli.Failed, "stop the daemon and run countersignd migrate --seal --root KEY, once"},
	{dev.ErrForeign, cli.Failed, "name an empty directory for dev; serve runs an existing appliance"},
	{rules.ErrAuto, cli.Config, "set [keys] auto = false in config.toml, or apply a policy that requires 1 administrator for these kinds"},
	{errOtherDomain, cli.Config, "correct trust.domain: init has set it"},
	{restore.ErrDomain, cli.Config, "correct trust.domain: init has set it"},
	{restore.ErrNoStatement, cli.Failed, "countersignctl store backup writes FILE.sig next to FILE; accept a copy made by other means with --unsigned-database"},
	{restore.ErrFiles, cli.IO, "the files must be readable, and state_dir and the directory of store.path writable"},
	{syscall.EADDRINUSE, cli.Unavailable, "stop the program that listens there (ss -ltnp), or use another address"},
	{syscall.EADDRNOTAVAIL, cli.Config, "listen on an address of this machine"},
	{dev.ErrInUse, cli.Unavailable, "stop the other countersignd dev, or use another directory"},
	{sqlite.ErrLocked, cli.Unavailable, "another program uses the database: end it (fuser shows it), then try again"},
	{store.ErrUnavailable, cli.Unavailable, "check store.path, its file system and that no other countersignd uses it"},
}

func explain(err error) error {
	for _, row := range exits {
		if errors.Is(err, row.err) {
			return cli.Fail(row.code, err, row.hint)
		}
	}
	return err
}
