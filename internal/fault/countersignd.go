package fault

var daemon = chapter("countersignd")

const (
	unpinnedAdvice = "run countersignd anchor --root KEY, for countersignd dev with --dir DIR; take KEY from the " +
		"output of init or from a phone, never from this store"
	olderAdvice = "put back the store that this host had; check trust.root or --root for a typo, but never " +
		"change them, or the anchor, to match a store"
	domainAdvice = "correct trust.domain: init has set it"
)

// Starting, and creating an appliance.
var (
	NoStore = daemon.row(Row{
		Text: "no store at {path}", Exit: Failed,
		Cause: "The database is not where store.path says. Nothing was created.",
		Advice: "if an appliance was here, put its database back or run countersignd restore (docs/RECOVERY.md); " +
			"check store.path and the disk; countersignd init creates a new appliance only",
	})
	NotInitialized = daemon.row(Row{
		Text: "the store holds no keys and no trust settings", Exit: Failed,
		Cause: "init was interrupted before it stored anything, or the file is an empty database.",
		Advice: "if an appliance was here, move this empty store away and put the real one back, or run " +
			"countersignd restore; countersignd init continues a new appliance",
	})
	StoreEmpty = daemon.row(Row{
		Text: "it is empty", Exit: Failed,
		Cause: "The database at store.path holds no appliance. doctor has changed nothing.",
		Advice: "if an appliance was here, move this empty store away and put the real one back, or run " +
			"countersignd restore; countersignd init continues a new appliance",
	})
	Initialized = daemon.row(Row{
		Text: "the store is initialized already; init never replaces a trust domain", Exit: Failed,
		Advice: "run countersignd serve",
	})
	TokenUsed = daemon.row(Row{
		Text: "the token holds keys already, and the store has none of them", Exit: Failed,
		Cause: "init uses an empty token only. These keys may be the last copy of an appliance. Nothing was created.",
		Advice: "keep this token: if its appliance is lost, countersignd restore brings it back from backups, and " +
			"its database put back to store.path works with it; for a new appliance name another, empty token in " +
			"hsm.token_label",
	})
	InitLocked = daemon.row(Row{
		Text: "HSM waits for its PIN", Exit: Auth,
		Advice: "init reads the PIN from a file, a credential, a descriptor or a prompt: name one in hsm.pin",
	})
	OtherDomain = daemon.row(Row{
		Text: "another trust domain", Exit: Config,
		Cause:  "trust.domain differs from the domain of the store.",
		Advice: domainAdvice,
	})
	AutoNeedsVotes = daemon.row(Row{
		Text: "[keys] auto takes steps that the policy wants countersigned", Exit: Config,
		Advice: "set [keys] auto = false in config.toml, or apply a policy that requires 1 administrator for these " +
			"kinds",
	})
	StateDir = daemon.row(Row{
		Text: "state directory: {error}", Exit: IO, Advice: "name a directory that this user may write, state_dir",
	})
	BadTrustRoot = daemon.row(Row{
		Text: "trust.root: {error}", Exit: Config,
		Advice: "copy the line root = \"…\" that countersignd init printed, 66 hexadecimal digits",
	})
	BadRecipient = daemon.row(Row{
		Text: "backup.recipient: {error}", Exit: Config,
		Advice: "countersignctl key custodians init writes it, backup.pub",
	})
	NoProc = daemon.row(Row{
		Text: "finding {program}: {error}", Exit: Config,
		Cause:  "The process has no /proc, so it does not know where it is installed.",
		Advice: "this process sees no /proc: name the program, hsm.worker_binary for hsm-worker",
	})
	NoPermission = daemon.row(Row{
		Text: "permission denied", Exit: IO,
		Advice: "run it as the user of countersignd, who owns state_dir and the files in it, or as root; a port " +
			"below 1024 needs CAP_NET_BIND_SERVICE",
	})
	AddressInUse = daemon.row(Row{
		Text: "address already in use", Exit: Unavailable,
		Advice: "stop the program that listens there (ss -ltnp), or use another address",
	})
	AddressForeign = daemon.row(Row{
		Text: "cannot assign requested address", Exit: Config, Advice: "listen on an address of this machine",
	})
	DevForeign = daemon.row(Row{
		Text: "directory holds a store or a PIN that countersignd dev did not make", Exit: Failed,
		Advice: "name an empty directory for dev; serve runs an existing appliance",
	})
	DevInUse = daemon.row(Row{
		Text: "directory is in use by another countersignd dev", Exit: Unavailable,
		Advice: "stop the other countersignd dev, or use another directory",
	})
)

// The token.
var (
	PINGuard = daemon.row(Row{
		Text: "the PIN guard cannot be kept", Exit: IO,
		Advice: "state_dir must be readable and writable, with free space: without the file pin-refused no PIN is " +
			"tried",
	})
	PINRefused = daemon.row(Row{
		Text: "HSM refused the PIN", Exit: Auth,
		Advice: "check hsm.pin, then run countersignctl hsm unlock: until then it is not tried again, so that the " +
			"token does not lock",
	})
	Unsupported = daemon.row(Row{
		Text: "the module lacks a mechanism", Exit: Failed,
		Advice: "countersignctl hsm probe shows the abilities of the module; one that makes no sealed copies needs " +
			"backup.recipient = \"\", and its keys cannot be restored",
	})
	NoHSM = daemon.row(Row{
		Text: "HSM unavailable", Exit: Unavailable,
		Advice: "check hsm.module, hsm.token_label and hsm.worker_binary, and that the token is present " +
			"(pkcs11-tool --module … -L); two of one label need hsm.token_serial",
	})
)

// The store and its anchor.
var (
	AnchorThere = daemon.row(Row{
		Text: "there is an anchor already", Exit: Failed,
		Cause: "state_dir/anchor remembers the root of an appliance, and its store is not here.",
		Advice: "an appliance was here: restore it; if init was interrupted and no device uses that root, move the " +
			"anchor away",
	})
	AnchorDamaged = daemon.row(Row{
		Text: "the anchor is damaged", Exit: IO,
		Advice: "move it away and run countersignd anchor --root KEY; do not use an older copy, which has an older " +
			"revision",
	})
	AnchorNone = daemon.row(Row{
		Text: "there is no anchor", Exit: Failed, Advice: unpinnedAdvice,
	})
	Unpinned = daemon.row(Row{
		Text: "no root is pinned: there is no anchor, and trust.root names none", Exit: Failed,
		Cause: "Nothing outside the database vouches for its keys.", Advice: unpinnedAdvice,
	})
	AnchorAhead = daemon.row(Row{
		Text: "the anchor does not go back", Exit: BadSignature,
		Cause: "The database is older than the newest one of this host.", Advice: olderAdvice,
	})
	AnchorBranch = daemon.row(Row{
		Text: "the anchor has another head of this revision", Exit: BadSignature,
		Cause: "The database is a copy that went its own way.", Advice: olderAdvice,
	})
	AnchorOther = daemon.row(Row{
		Text: "the anchor has another root under this number", Exit: BadSignature,
		Cause: "The database is of another appliance.", Advice: olderAdvice,
	})
	ForeignRoots = daemon.row(Row{
		Text: "the database does not have the roots of this appliance", Exit: BadSignature, Advice: olderAdvice,
	})
	ForeignKey = daemon.row(Row{
		Text: "a key in the database is not what a root of this appliance certified", Exit: BadSignature,
		Advice: "put back the store that this host had: only the appliance itself changes its keys",
	})
	RootDigits = daemon.row(Row{
		Text: "--root {error}", Exit: Usage, Cause: "The value of --root is no public key.",
		Advice: "KEY is 66 hexadecimal digits, as printed by countersignd init and countersignctl status",
	})
	SealedBefore = daemon.row(Row{
		Text: "the store of this host was sealed before, and this one is not", Exit: BadSignature,
		Advice: "put back the store that this host had: countersignd seals a store only once",
	})
	OtherList = daemon.row(Row{
		Text: "the list is another than the one that was confirmed", Exit: Failed,
		Advice: "read the list again: the store, or what can be verified of it, has changed",
	})
	NewerStore = daemon.row(Row{
		Text: "the schema is newer than this program: run a newer release", Exit: Failed,
		Advice: "run the release that wrote the database, or a later one; this release reads only a copy from " +
			"before the upgrade",
	})
	UnsealedStore = daemon.row(Row{
		Text: "its schema is of an older release", Exit: Failed,
		Advice: "stop every countersignd, copy store.path away, and run countersignd migrate --seal --root KEY",
	})
	OldStore = daemon.row(Row{
		Text: "the store is of an earlier release", Exit: Failed,
		Advice: "stop the daemon and run countersignd migrate --seal --root KEY, once",
	})
	Forged = daemon.row(Row{
		Text: "the record was changed outside of the appliance and is not trusted", Exit: BadSignature,
		Advice: "another program wrote to the database; countersignd doctor names the records: stop the daemon, " +
			"find the program and restore a good copy (docs/RECOVERY.md)",
	})
	StoreLocked = daemon.row(Row{
		Text: "another program holds it", Exit: Unavailable,
		Advice: "another program uses the database: end it (fuser shows it), then try again",
	})
	NoStoreAccess = daemon.row(Row{
		Text: "store unavailable", Exit: Unavailable,
		Advice: "check store.path, its file system and that no other countersignd uses it",
	})
	DiskFailed = daemon.row(Row{
		Text: "the store's disk failed", Exit: IO, Cause: "An fsync failed, or the database is corrupt.",
		Advice: "check the disk below store.path; nothing that was acknowledged is lost",
	})
	WriteCA = daemon.row(Row{
		Text: "ca.pem cannot be written: {error}", Exit: IO, Advice: "state_dir must be writable, with free space",
	})
)

// Restoring.
var (
	NoRootNamed = daemon.row(Row{
		Text: "no root of this appliance is named, and no file vouches for its own", Exit: Usage,
		Advice: "give --root 03…, or trust.root: the public key of any root of this appliance, from the " +
			"custodians' paper or another place apart from the backups",
	})
	BadBackup = daemon.row(Row{
		Text: "not what an appliance signed", Exit: Failed,
		Cause:  "The backup, the database or its .sig was changed or cut off, or is another kind of file.",
		Advice: "the file was changed or cut off, or is another kind: use another copy",
	})
	RuledOut = daemon.row(Row{
		Text: "signed by a key that no longer counts", Exit: Failed,
		Cause:  "The decision key that signed the file is compromised, ruled out or below --min-epoch.",
		Advice: "use a backup and a copy of the database from after that key was replaced",
	})
	OtherAppliance = daemon.row(Row{
		Text: "of another appliance or another history", Exit: Failed,
		Cause: "Also: an attacker signed the files with another root, or an unsigned database is newer than the " +
			"newest root of the backup.",
		Advice: "backup, database and root must belong to one appliance and one history",
	})
	RestoreTokenUsed = daemon.row(Row{
		Text: "the token is not empty", Exit: Failed,
		Advice: "restore onto another, empty token, and name its label in hsm.token_label; keep this one: its keys " +
			"may be the only ones of an appliance",
	})
	BackupShares = daemon.row(Row{
		Text: "shares of another backup key", Exit: Denied,
		Advice: "countersignctl key custodians check prints the backup key of a share",
	})
	BadCopy = daemon.row(Row{
		Text: "a sealed copy does not open", Exit: Failed, Cause: "It was damaged before the backup.",
		Advice: "nothing was restored; an older backup may have an intact copy",
	})
	StoreThere = daemon.row(Row{
		Text: "there is a store already; restore never replaces one", Exit: Failed,
		Advice: "try countersignd serve and doctor first; if that appliance is really lost, move its store away " +
			"and keep it",
	})
	RestoreRunning = daemon.row(Row{
		Text: "another restore is running", Exit: Unavailable, Advice: "wait until it is done",
	})
	RestoreOldMAC = daemon.row(Row{
		Text: "the anchor of this host is ahead of the files", Exit: Failed,
		Advice: "use a key backup from after that rotation; if there is none, restore on a host without an anchor",
	})
	RestoreLost = daemon.row(Row{
		Text: "keys without a sealed copy do not come back", Exit: Failed,
		Advice: "--partial restores the others and records these as destroyed: they were created before the backup key",
	})
	RestoreUnsealed = daemon.row(Row{
		Text: "a database of a release before the seals needs its statement", Exit: Failed,
		Advice: "use the copy that countersignctl store backup wrote, with its .sig",
	})
	RestoreInterrupted = daemon.row(Row{
		Text: "a restore was interrupted here", Exit: Failed,
		Advice: "run countersignd restore again with the same files",
	})
	NoStatement = daemon.row(Row{
		Text: "nothing vouches for the database", Exit: Failed,
		Cause: "The .sig is missing. With --unsigned-database, restore takes keys, trust and policy from the backup " +
			"alone. It lists and leaves out records whose seals do not verify; if the database as a whole is not sound, " +
			"also administrators, change requests and invitations.",
		Advice: "countersignctl store backup writes FILE.sig next to FILE; accept a copy made by other means with " +
			"--unsigned-database",
	})
	RestoreFiles = daemon.row(Row{
		Text: "cannot read or write a file", Exit: IO,
		Advice: "the files must be readable, and state_dir and the directory of store.path writable",
	})
)
