package main

import (
	"errors"
	"syscall"

	"countersign/appliance/anchor"
	"countersign/appliance/backup"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/worker"
	"countersign/internal/cli"
)

// errDisk: an fsync failed, or the database is corrupt.
var errDisk = errors.New("the store's disk failed")

const unpinnedHint = "run countersignd anchor --root KEY, for countersignd dev with --dir DIR; KEY is what init printed or a phone pinned, never what this store says"

const olderHint = "take the store back that this host had; trust.root or --root may be mistyped, but never correct them, or the anchor, to what a store says"

// exits is the one table from errors to exit codes and advice.
var exits = []struct {
	err  error
	code cli.Code
	hint string
}{
	{worker.ErrGuard, cli.IO, "state_dir must be readable and writable, with room: without the file pin-refused no PIN is tried"},
	{hsm.ErrPIN, cli.Auth, "check hsm.pin, then run countersignctl hsm unlock: until then it is not tried again, so that the token does not lock"},
	{hsm.ErrLocked, cli.Auth, "init takes the PIN from a file, a credential, a descriptor or a prompt: name one in hsm.pin"},
	{anchor.ErrThere, cli.Failed, "an appliance was here: bring it back with restore; where init was cut off and nobody uses that root, move the anchor away"},
	{anchor.ErrDamaged, cli.IO, "move it away and run countersignd anchor --root KEY; a copy from before knows less than it did"},
	{anchor.ErrNone, cli.Failed, unpinnedHint},
	{anchor.ErrBack, cli.BadSignature, olderHint},
	{anchor.ErrBranch, cli.BadSignature, olderHint},
	{anchor.ErrOther, cli.BadSignature, olderHint},
	{keyring.ErrUnpinned, cli.Failed, unpinnedHint},
	{keyring.ErrRoots, cli.BadSignature, olderHint},
	{keyring.ErrRow, cli.BadSignature, "take the store back that this host had: nothing but an appliance's own steps writes its keys"},
	{errSealedBefore, cli.BadSignature, "take the store back that this host had: only countersignd seals a store, and only once"},
	{errExpect, cli.Failed, "read the list again: the store, or what is trusted of it, has changed"},
	{sqlite.ErrMigrate, cli.Failed, "stop every countersignd, copy store.path away, and run countersignd migrate --seal --root KEY"},
	{store.ErrForged, cli.BadSignature, "another program wrote to the database; countersignd doctor names the records: stop the daemon, find the program and restore a good copy (docs/RECOVERY.md)"},
	{errInitialized, cli.Failed, "run countersignd serve"},
	{backup.ErrFile, cli.Failed, "the file was changed, cut off or is another kind: take another copy of it"},
	{backup.ErrRuledOut, cli.Failed, "take a backup and a copy of the database from after that key was replaced"},
	{backup.ErrOther, cli.Failed, "backup, database and root are to be of one appliance and one history"},
	{backup.ErrTokenUsed, cli.Failed, "restore onto a token that was just initialized; its label goes into hsm.token_label"},
	{backup.ErrShares, cli.Denied, "countersignctl key custodians check tells which backup key a share is of"},
	{backup.ErrCopy, cli.Failed, "nothing was restored; an older backup may have this copy whole"},
	{errStoreThere, cli.Failed, "if that appliance is really lost, move its store away first"},
	{errTwoRestores, cli.Unavailable, "wait until it is done"},
	{errOldMAC, cli.Failed, "take a key backup from after that rotation; where there is none, restore on a host that has no anchor"},
	{errLost, cli.Failed, "--partial brings the others back and records these as destroyed: they were made before there was a backup key"},
	{errUnsealed, cli.Failed, "take the copy that countersignctl store backup wrote, with its .sig"},
	{errRestoring, cli.Failed, "run countersignd restore again, with the same files: it takes up what is there"},
	{errTokenUsed, cli.Failed, "use an empty token; an interrupted init leaves keys behind: initialize the token again"},
	{hsm.ErrUnsupported, cli.Failed, "countersignctl hsm probe tells what the module can do; one that makes no sealed copies goes with backup.recipient = \"\", and without a way back"},
	{hsm.ErrUnavailable, cli.Unavailable, "check hsm.module, hsm.token_label and hsm.worker_binary, and that the token is there (pkcs11-tool --module … -L); two of one label need hsm.token_serial"},
	{errDisk, cli.IO, "check the disk below store.path; nothing that was acknowledged is lost"},
	{keyring.ErrNotInitialized, cli.Failed, "run countersignd init first"},
	{keyring.ErrOldStore, cli.Failed, "stop the daemon and run countersignd migrate --seal --root KEY, once"},
	{errNotDev, cli.Failed, "take an empty directory for dev; serve runs what is there"},
	{errOtherDomain, cli.Config, "correct trust.domain: it was fixed by init"},
	{syscall.EADDRINUSE, cli.Unavailable, "another program listens there (ss -ltnp), or take another address"},
	{syscall.EADDRNOTAVAIL, cli.Config, "listen on an address of this machine"},
	{errDirInUse, cli.Unavailable, "stop the other countersignd dev, or take another directory"},
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
