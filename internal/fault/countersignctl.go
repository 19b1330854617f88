package fault

var ctl = chapter("countersignctl")

// Answers of the admin API, and its socket.
var (
	NoSuchName = ctl.row(Row{
		Text: "not found", Exit: NotFound, Advice: "{command}",
	})
	KeyStepRefused = ctl.row(Row{
		Text: "not possible now, too early, or the root key is not on the token", Exit: Failed,
		Cause:  "A key cannot take this step. The message names the state of the version.",
		Advice: "countersignctl key list shows the state of each version",
	})
	TokenCannot = ctl.row(Row{
		Text: "the module lacks a mechanism", Exit: Unavailable,
		Advice: "pkcs11-tool -O shows the attributes meanwhile",
	})
	QuorumWaits = ctl.row(Row{
		Text: "more administrators have to countersign", Exit: Denied,
		Cause: "The policy requires more administrators. Nothing was changed yet; the request waits for their " +
			"signatures.",
		Advice: "countersignctl change list shows the requests that wait",
	})
	QuorumWaitsFor = ctl.row(Row{
		Text: "more administrators have to countersign", Exit: Denied,
		Cause: "The policy requires more administrators. Nothing was changed yet; the request waits for their " +
			"signatures.",
		Advice: "countersignctl change sign {id}, with --key or --pkcs11",
	})
	NothingWritten = ctl.row(Row{
		Text: "nothing was written: {kind} waits for its quorum", Exit: Denied,
		Advice: "countersignctl change sign {id}, with --key or --pkcs11; then run this command again within an " +
			"hour, or start it with --wait",
	})
	CopyWaits = ctl.row(Row{
		Text: "nothing was written: {kind} waits for its quorum", Exit: Denied,
		Cause: "The copy of the database takes a quorum.",
		Advice: "countersignctl change sign {id}, with --key or --pkcs11; then run this command again within an hour, " +
			"or start it with --wait; " +
			"for a copy that runs by itself, put \"store.backup\" = 0 in [quorum] of the policy",
	})
	NoBackupFile = ctl.row(Row{
		Text: "--out is missing", Exit: Usage, Advice: "name the file that the backup goes to: --out FILE",
	})
	OldPolicy = ctl.row(Row{
		Text: "version {version}: {error}", Exit: Config,
		Advice: "an earlier release accepted this document; correct what policy show {argument} --document prints, " +
			"and apply it",
	})
	ChangeOver = ctl.row(Row{
		Text: "the request is over", Exit: Denied,
		Cause:  "It was executed, withdrawn or has expired, or what it changes has changed.",
		Advice: "request the change again: a request is executed at most once",
	})
	ChangeEnded = ctl.row(Row{
		Text: "change {id} is {state}", Exit: Denied,
		Cause:  "The request that --wait waited for ended without its effect.",
		Advice: "countersignctl change show {id} shows why; request the change again",
	})
	WaitInterrupted = ctl.row(Row{
		Text: "interrupted; change {id} is still {state}", Exit: Interrupted,
		Advice: "countersignctl change show {id} shows it, change withdraw ends it",
	})
	ForeignSigner = ctl.row(Row{
		Text: "not an active administrator", Exit: Denied,
		Advice: "countersignctl admin list shows who may countersign",
	})
	BadSignatureOfChange = ctl.row(Row{
		Text: "signature does not verify", Exit: BadSignature,
		Advice: "sign the document that countersignctl change export prints, as CHANGE.md describes",
	})
	KeysUncovered = ctl.row(Row{
		Text: "keys without a sealed copy", Exit: Failed,
		Advice: "a key is sealed only when it is generated: set backup.recipient, then rotate these keys; " +
			"--partial leaves them out",
	})
	NameTaken = ctl.row(Row{
		Text: "exists already", Exit: Failed,
		Cause:  "A client or device of this name is enrolled, or has an open activation code.",
		Advice: "{name} is enrolled or has an open code: --replace revokes it and makes a new one",
	})
	AdminTaken = ctl.row(Row{
		Text: "exists already", Exit: Failed, Cause: "An administrator has this name or this key.",
		Advice: "countersignctl admin list shows names and keys; each administrator needs a key and a name of " +
			"their own",
	})
	OtherTaken = ctl.row(Row{
		Text: "exists already", Exit: Failed, Cause: "The message says what exists. Nothing was changed.",
	})
	Conflicting = ctl.row(Row{
		Text: "changed by another request meanwhile, or revoked permanently", Exit: Failed,
		Cause: "Or the object is in a state that this change cannot begin from. The message names it. Nothing was " +
			"changed.",
	})
	BadRequest = ctl.row(Row{
		Text: "bad request", Exit: Usage,
		Cause: "The appliance refuses a value. The message names it. Nothing was changed.",
	})
	TokenAway = ctl.row(Row{
		Text: "HSM unavailable, or busy", Exit: Unavailable,
		Advice: "countersignctl hsm status shows the state of each token",
	})
	StoreAway = ctl.row(Row{
		Text: "store unavailable", Exit: Unavailable,
		Advice: "if the database is locked, end the program that uses it (fuser shows it); or check the disk of " +
			"store.path",
	})
	UnlockRefused = ctl.row(Row{
		Text: "HSM refused the PIN", Exit: Auth,
		Advice: "the token counts wrong PINs; run countersignctl hsm unlock again with the right one",
	})
	StillLocked = ctl.row(Row{
		Text: "the HSM waits for its PIN", Exit: Unavailable, Advice: "run countersignctl hsm unlock",
	})
	Internal = ctl.row(Row{
		Text: "internal error", Exit: Failed, Cause: "The daemon's log has the whole error.",
	})
	SocketForbidden = ctl.row(Row{
		Text: "asking the appliance: permission denied", Exit: Unavailable,
		Advice: "run countersignctl as root or as the user of countersignd: no other user may use its socket",
	})
	SocketMissing = ctl.row(Row{
		Text: "asking the appliance: no such file or directory", Exit: Unavailable,
		Advice: "start countersignd, or name its socket with --admin unix:PATH (admin.socket in config.toml)",
	})
	SocketLeft = ctl.row(Row{
		Text: "asking the appliance: connection refused", Exit: Unavailable,
		Advice: "start countersignd: the socket is left from a run that ended",
	})
	SocketSilent = ctl.row(Row{
		Text: "asking the appliance", Exit: Unavailable,
		Cause:  "The daemon closed the connection, or did not answer in time.",
		Advice: "look at the log of countersignd, and ask again: a change that was made is found",
	})
	AdminAddress = ctl.row(Row{
		Text: "--admin: {error}", Exit: Usage, Advice: "for example --admin unix:/var/lib/countersign/admin.sock",
	})
)

// Questions, files and flags.
var (
	NotConfirmed = ctl.row(Row{
		Text: "{name}: nothing was changed", Exit: Failed,
		Cause:  "The typed name differs.",
		Advice: "type its name to confirm, or give --yes",
	})
	BadFlags = ctl.row(Row{
		Text: "{error}", Exit: Usage,
		Cause:  "A flag has a value that is not allowed. Nothing was changed.",
		Advice: "see {command} --help",
	})
	BadFloor = ctl.row(Row{
		Text: "--floor {floor}: want a level from 1 to 4", Exit: Usage,
		Advice: "see countersignctl device invite --help",
	})
	RecordNumber = ctl.row(Row{
		Text: "audit record {number}: want its sequence number, from 1", Exit: Usage,
		Advice: "countersignctl audit tail shows the numbers",
	})
	NoRecord = ctl.row(Row{
		Text: "there is no audit record {number}", Exit: NotFound,
		Advice: "countersignctl audit tail shows the newest ones",
	})
	TooManyRecords = ctl.row(Row{
		Text: "--limit {limit}: want 1 to {most}", Exit: Usage, Advice: "--after lists the records page by page",
	})
	ReadPolicy = ctl.row(Row{
		Text: "reading the policy: {error}", Exit: IO, Advice: "check the path, and that this user may read the file",
	})
	BadPolicy = ctl.row(Row{
		Text: "policy.toml:12: …", Exit: Config,
		Cause:  "The policy has errors, each with its line. The active policy stays in force.",
		Advice: "correct {path}; countersignctl policy show --document prints the policy in force",
	})
	CopyAborted = ctl.row(Row{
		Text: "unexpected EOF", Exit: IO, Cause: "The copy of the database ended early. Nothing was written.",
		Advice: "is there enough free space? the daemon needs the same again beside the database",
	})
	CopyIncomplete = ctl.row(Row{
		Text: "the copy is incomplete", Exit: TryAgain,
		Cause:  "It differs from its description. Nothing was written.",
		Advice: "run it again",
	})
	BackupFile = ctl.row(Row{
		Text: "writing {path}: {error}", Exit: IO,
		Advice: "name a file in a directory that you may write, with enough free space",
	})
)

// Change requests, and the keys of operators.
var (
	ForeignDocument = ctl.row(Row{
		Text: "the document has another hash than the request", Exit: BadSignature,
		Advice: "do not sign; find out which program answers on --admin",
	})
	WhichChange = ctl.row(Row{
		Text: "want the id of a request, or --offline and a file", Exit: Usage,
		Advice: "countersignctl change list shows the ids",
	})
	ReadDocument = ctl.row(Row{
		Text: "reading the document: {error}", Exit: IO,
		Advice: "name the file that countersignctl change export wrote",
	})
	NotSigned = ctl.row(Row{
		Text: "you refused; nothing was signed", Exit: Failed, Cause: "The answer to the question was not y.",
	})
	ReadSignature = ctl.row(Row{
		Text: "reading the signature: {error}", Exit: IO,
		Advice: "name the file that countersignctl change sign --offline wrote",
	})
	BadSignatureFile = ctl.row(Row{
		Text: "not a signature of a change request", Exit: BadSignature,
		Advice: "want the output of countersignctl change sign --offline, see CHANGE.md",
	})
	OtherRequest = ctl.row(Row{
		Text: "the signature does not verify under the key of the administrator", Exit: BadSignature,
		Advice: "was it made for this request?",
	})
	NoSuchAdmin = ctl.row(Row{
		Text: "no administrator has key {key}", Exit: Denied, Advice: "countersignctl admin list",
	})
	NoOperatorKey = ctl.row(Row{
		Text: "no key", Exit: Usage, Advice: "give --key or --pkcs11",
	})
	TwoOperatorKeys = ctl.row(Row{
		Text: "--key and --pkcs11 exclude each other", Exit: Usage, Advice: "give one of them",
	})
	WhereToMake = ctl.row(Row{
		Text: "give either --pkcs11 or --out", Exit: Usage,
		Advice: "for example --pkcs11 'pkcs11:token=operators;object=ann'",
	})
	OperatorKeyUnread = ctl.row(Row{
		Text: "operator's key: {error}", Exit: Auth,
		Advice: "check the path of --key, and that this user may read the file",
	})
	OperatorKeyMode = ctl.row(Row{
		Text: "operator's key: {path}: mode {mode} lets others use it", Exit: Auth, Advice: "chmod 600 {path}",
	})
	OperatorKeyKind = ctl.row(Row{
		Text: "operator's key: {path}: {error}", Exit: Auth, Advice: "countersignctl admin keygen makes one",
	})
	WriteOperatorKey = ctl.row(Row{
		Text: "writing the key: {error}", Exit: IO, Advice: "name a file that does not exist",
	})
	WhichPublicKey = ctl.row(Row{
		Text: "want --key or --public", Exit: Usage, Advice: "--key takes PEM, --public a point in hex, 33 or 65 bytes",
	})
	ReadPublicKey = ctl.row(Row{
		Text: "reading the key: {error}", Exit: IO,
		Advice: "check the path of --key, and that this user may read the file",
	})
	BadPublicKey = ctl.row(Row{
		Text: "{path}: {error}", Exit: Usage, Cause: "The file of --key holds no key of an administrator.",
		Advice: "want PEM of a key on P-256, PUBLIC KEY or PRIVATE KEY",
	})
	OperatorURI = ctl.row(Row{
		Text: "pkcs11:", Exit: Usage, Cause: "The value of --pkcs11 is no URI of a key on a token.",
		Advice: "for example pkcs11:token=operators;object=ann?module-path=/usr/lib/softhsm/libsofthsm2.so",
	})
	OperatorPIN = ctl.row(Row{
		Text: "HSM refused the PIN", Exit: Auth, Cause: "The token of an operator refused its PIN.",
		Advice: "it was tried once and is not tried again; look how many tries the token has left",
	})
	OperatorToken = ctl.row(Row{
		Text: "HSM unavailable", Exit: Unavailable, Cause: "The token of an operator cannot be opened.",
		Advice: "check module-path and token of the URI (pkcs11-tool --module … -L)",
	})
	OperatorTokenKeys = ctl.row(Row{
		Text: "listing the token's keys: {error}", Exit: Unavailable,
		Advice: "is the token still there? pkcs11-tool --module … -O lists its keys",
	})
	OperatorKeyChoice = ctl.row(Row{
		Text: "{count} keys on the token fit the URI, want one", Exit: NotFound,
		Advice: "keys on P-256 that can sign on this token: {keys}",
	})
	OperatorNoKeys = ctl.row(Row{
		Text: "{count} keys on the token fit the URI, want one", Exit: NotFound,
		Cause:  "The token has no key of an operator.",
		Advice: "the token has no key pair on P-256 that can sign; it needs both halves, under one CKA_ID",
	})
	NewKeyWithID = ctl.row(Row{
		Text: "a new key takes an object and no id", Exit: Usage,
		Advice: "for example pkcs11:token=operators;object=ann",
	})
	MakeOperatorKey = ctl.row(Row{
		Text: "making the key: {error}", Exit: Failed,
		Cause:  "The token made no key. If the label is taken, the key that has it is unchanged.",
		Advice: "name another object if the label is taken",
	})
	OperatorSigning = ctl.row(Row{
		Text: "HSM unavailable", Exit: Unavailable,
		Cause:  "The token of an operator did not sign.",
		Advice: "is the token still there? Sign again",
	})
)

// Custodians.
var (
	CustodiansWrong = ctl.row(Row{
		Text: "want 2 to 32 shares, and a threshold from 2 to their number", Exit: Usage,
		Cause: "No backup key was made.",
		Advice: "give a --recipient, --passphrase-file or question for each custodian, and in --threshold how many " +
			"of them are needed",
	})
	CustodianDir = ctl.row(Row{
		Text: "permission denied", Exit: IO,
		Cause:  "The directory for the shares cannot be made. No backup key was made.",
		Advice: "name a directory that you may write",
	})
	SharesThere = ctl.row(Row{
		Text: "{path} exists already", Exit: Failed, Cause: "No backup key was made.",
		Advice: "name an empty directory: a backup key is never overwritten",
	})
	BadAgeRecipient = ctl.row(Row{
		Text: "recipient", Exit: Usage, Cause: "The value of --recipient is no recipient of age.",
		Advice: "age-keygen prints a custodian's recipient, age1…",
	})
	WeakPassphrase = ctl.row(Row{
		Text: "passphrase", Exit: Usage, Cause: "The passphrase is too short or too simple. No backup key was made.",
		Advice: "choose several random words",
	})
	PassphrasesDiffer = ctl.row(Row{
		Text: "the two passphrases differ", Exit: Auth, Advice: "no key was generated; run it again",
	})
	ReadBackupKey = ctl.row(Row{
		Text: "--backup-key: {error}", Exit: IO,
		Advice: "check the path of --backup-key, and that this user may read the file",
	})
	BadBackupKey = ctl.row(Row{
		Text: "not the public half of a backup key", Exit: Config,
		Advice: "--backup-key is the backup.pub of countersignctl key custodians init",
	})
)

// The HSM.
var (
	NoProbe = ctl.row(Row{
		Text: "starting hsm-probe: {error}", Exit: Unavailable, Advice: "it belongs beside countersignctl",
	})
	NoTokenServes = ctl.row(Row{
		Text: "{reasons}", Exit: Unavailable,
		Cause:  "No token answers. The message has the reason of each.",
		Advice: "see the log of countersignd",
	})
	TokensNeedPIN = ctl.row(Row{
		Text: "{reasons}", Exit: Unavailable,
		Cause:  "No token answers, and one waits for its PIN.",
		Advice: "run countersignctl hsm unlock",
	})
	NoTokenWaits = ctl.row(Row{
		Text: "no token waits for a PIN", Exit: Failed, Advice: "see countersignctl hsm status",
	})
	NoStateDir = ctl.row(Row{
		Text: "no daemon answers, and its state directory is not known", Exit: Usage,
		Advice: "name it: --state-dir DIR",
	})
	NoPINRefused = ctl.row(Row{
		Text: "no daemon answers at {address}, and in {dir} no PIN was refused", Exit: Failed,
		Advice: "start countersignd, or name its state directory: --state-dir DIR",
	})
	GuardForbidden = ctl.row(Row{
		Text: "the PIN guard cannot be kept", Exit: Auth,
		Cause:  "This user may not lift the guard.",
		Advice: "run it as the user of countersignd",
	})
	GuardStuck = ctl.row(Row{
		Text: "the PIN guard cannot be kept", Exit: IO,
		Cause:  "The file of the guard cannot be removed.",
		Advice: "run it as the user of countersignd; is the disk mounted for writing?",
	})
	KeysDrifted = ctl.row(Row{
		Text: "{count} keys on the token differ from the registry, {first} first", Exit: Failed,
		Advice: "an interrupted step or another program left an unknown object; rotate a key that differs, do not " +
			"trust it",
	})
)
