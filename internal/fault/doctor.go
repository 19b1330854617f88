package fault

var doctor = chapter("countersignd doctor")

const (
	examineAdvice  = "read its log; /readyz and countersignctl hsm status show which part is unavailable"
	identityAdvice = "the daemon renews it by itself: its log says why it did not; it writes ca.pem when it starts"
)

// Files. The exit code is 77 for the PIN and 69 for the module.
var (
	DoctorNoEntry = doctor.row(Row{
		Text: "this user may not use the state directory: {error}", Exit: Config,
		Cause:  "Nothing in it was examined. It says nothing about store and token.",
		Advice: "run countersignd doctor as the user of countersignd, or as root",
	})
	DoctorNoFile = doctor.row(Row{
		Text: "no such file or directory", Exit: Config,
		Cause: "The exit code is 77 for the PIN and 69 for the module.",
		Advice: "correct its path in the configuration; if the file was lost, put it back from where the appliance " +
			"was installed",
	})
	DoctorFileKind = doctor.row(Row{
		Text: "{path} is not the right kind of file: {mode}", Exit: Config,
		Cause:  "The exit code is 77 for the PIN and 69 for the module.",
		Advice: "correct its path in the configuration",
	})
	DoctorFileMode = doctor.row(Row{
		Text: "{path} has mode {mode}", Exit: Config,
		Cause:  "Other users may use the file. The exit code is 77 for the PIN and 69 for the module.",
		Advice: "chmod {allowed} {path}",
	})
	DoctorNotExecutable = doctor.row(Row{
		Text: "{path} is not executable", Exit: Config, Advice: "chmod +x {path}",
	})
	DoctorPINGuard = doctor.row(Row{
		Text: "the token refused the PIN{since}, and it is not tried again", Exit: Auth,
		Advice: "countersignctl hsm unlock with the right PIN lifts the guard",
	})
	DoctorAnchorPinned = doctor.row(Row{
		Text:   "there is no anchor",
		Cause:  "trust.root names a root.",
		Advice: "countersignd serve creates it from trust.root",
	})
)

// The host.
var (
	DoctorNoDisk = doctor.row(Row{
		Text: "{dir}: {error}", Exit: IO, Cause: "The file system of the database does not answer.",
		Advice: "store.path must be on a mounted disk",
	})
	DoctorDiskFull = doctor.row(Row{
		Text: "MiB free", Exit: IO, Cause: "The disk of the database is full, or has no free inodes.",
		Advice: "free some space: without it the appliance approves nothing",
	})
	DoctorDiskLow = doctor.row(Row{
		Text: "MiB free", Cause: "Less than 256 MiB are free on the disk of the database.",
		Advice: "free some space before the appliance can approve nothing",
	})
	DoctorNoTimeService = doctor.row(Row{
		Text: "adjtimex: {cause}", Cause: "The kernel does not say whether the clock is synchronized.",
		Advice: "make sure that NTP synchronizes the clock",
	})
	DoctorUnsynchronized = doctor.row(Row{
		Text:   "the clock is not synchronized",
		Advice: "run an NTP client: with a wrong clock, challenges expire early or late",
	})
	DoctorCoreUnknown = doctor.row(Row{
		Text: "{cause}", Cause: "The limit of core files of the daemon cannot be read.",
		Advice: "make sure that the daemon leaves no core files",
	})
	DoctorCoreFiles = doctor.row(Row{
		Text: "process {pid} may leave core files of {bytes} bytes, with the PIN in them", Exit: Failed,
		Advice: "restart the daemon; set LimitCORE=0",
	})
)

// The service.
var (
	DoctorNoDaemon = doctor.row(Row{
		Text: "no daemon answers on {socket}", Cause: "doctor opened store and token itself, and changed neither.",
		Advice: "start countersignd serve",
	})
	DoctorUpgrade = doctor.row(Row{
		Text:  "the database has schema {from}, and countersignd serve upgrades it to {to}",
		Cause: "A release before this one wrote the database. doctor has not changed it.",
		Advice: "copy store.path away while no daemon runs, if you may have to go back: earlier releases refuse " +
			"the database after the upgrade",
	})
	DoctorDaemonFails = doctor.row(Row{
		Text: "examining the daemon: {error}", Exit: Unavailable, Advice: examineAdvice,
	})
	DoctorNoAuthorities = doctor.row(Row{
		Text: "ca.pem: {error}", Exit: IO,
		Cause:  "The file of the API's authorities cannot be read.",
		Advice: identityAdvice,
	})
	DoctorNoAPI = doctor.row(Row{
		Text: "api.listen: {error}", Exit: Unavailable,
		Cause:  "A TLS connection as a device makes it failed.",
		Advice: identityAdvice,
	})
	DoctorOldIdentity = doctor.row(Row{
		Text: "good until {time}", Cause: "The certificate of the API ends within six hours.", Advice: identityAdvice,
	})
	DoctorFailed = doctor.row(Row{
		Text: "checks failed", Exit: Failed, Cause: "The exit code is the one of the most urgent failed check.",
		Advice: "follow the advice of the first failed check",
	})
)

// What a running daemon, or doctor without one, examines.
var (
	ExamineHSM = doctor.row(Row{
		Text: "hsm", Cause: "The token did not sign, signed wrongly or took more than 500 ms.",
		Advice: "run countersignctl hsm status for the workers; check the token and its network",
	})
	ExamineKeys = doctor.row(Row{
		Text: "keys", Cause: "A key of the registry is not on the token, or does not work.",
		Advice: "run countersignctl key list; a missing key is on another token, or has to be restored",
	})
	ExamineStore = doctor.row(Row{
		Text: "store", Cause: "A durable write failed or took more than 100 ms.",
		Advice: "check the disk of store.path, and end other programs that use the database (fuser shows them)",
	})
	ExamineSeals = doctor.row(Row{
		Text: "seals", Cause: "Records or the schema of the database do not fit their seals.",
		Advice: "another program wrote to the database: find it, and restore a good copy (docs/RECOVERY.md)",
	})
	ExamineClock = doctor.row(Row{
		Text: "behind the newest audit record", Cause: "The clock is slow, or it was ahead before.",
		Advice: "set the clock and use NTP: certificates and challenges depend on it",
	})
	ExamineClockBack = doctor.row(Row{
		Text: "set back since the daemon started",
		Advice: "set the clock, then restart the daemon: until then it goes by the later time for all that expires " +
			"or waits",
	})
	ExamineDates = doctor.row(Row{
		Text: "dates", Cause: "A key is due for rotation. Without any version in use the check fails.",
		Advice: "run countersignctl key plan, then key rotate and key activate",
	})
	ExamineDatesByClock = doctor.row(Row{
		Text: "dates", Cause: "The clock is wrong too.",
		Advice: "correct the clock first (see the check clock): with a wrong clock no date of a key is right",
	})
	ExamineQuorum = doctor.row(Row{
		Text:  "quorum",
		Cause: "Fewer administrators are able to sign than a quorum takes, or one quorum evades another.",
		Advice: "resume a suspended administrator (countersignctl admin resume), add one, or apply a policy with smaller " +
			"quorums; policy.apply and admin.add need the largest",
	})
	ExamineChanges = doctor.row(Row{
		Text: "changes were interrupted", Advice: "the daemon tries again every minute; its log shows the reason",
	})
	ExamineToken = doctor.row(Row{
		Text: "token", Cause: "One of two tokens does not serve.",
		Advice: "the service has one token until it serves: countersignctl hsm status shows its workers",
	})
	ExamineTokenLacks = doctor.row(Row{
		Text: "without", Cause: "One of two tokens lacks keys that are in use.",
		Advice: "it cannot take over: rotate these keys (a rotation makes the next version on every token), or " +
			"restore their copies onto it",
	})
	ExamineTokenRefused = doctor.row(Row{
		Text: "refused", Cause: "The two tokens have different keys under one id.",
		Advice: "find out which token has the right keys (docs/HSM.md): a token that is refused may have the only " +
			"right ones; then copy them onto a new token",
	})
)
