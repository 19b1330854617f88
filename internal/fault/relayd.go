package fault

var relayd = chapter("relayd")

// Enrolment of a device. The code is good until the enrolment has succeeded: a repeat with it gets the same answer.
var (
	DeviceCode = relayd.row(Row{
		Text: "an activation code that cannot be read", Exit: Usage,
		Cause:  "A part of the code is missing, or a letter is wrong.",
		Advice: "copy the whole code that countersignctl device invite printed",
	})
	NoAppliance = relayd.row(Row{
		Text: "the appliance is not named", Exit: Usage, Advice: "give --config FILE, or --url URL and --ca FILE",
	})
	NotHTTPS = relayd.row(Row{
		Text: "--url {error}", Exit: Usage,
		Cause:  "The address is not that of an appliance. No code was asked for.",
		Advice: "give the address of the appliance's API: https://, the host, and the port of api.listen",
	})
	FlagContradictsFile = relayd.row(Row{
		Text: "--{flag} is {given}, and {key} in {file} is {wanted}", Exit: Usage,
		Cause:  "relayd serve would look elsewhere. No code was asked for.",
		Advice: "leave --{flag} out, or correct the file",
	})
	DeviceEnrolled = relayd.row(Row{
		Text: "device is enrolled already", Exit: Failed,
		Advice: "to enrol another device, use another state directory",
	})
	NoCA = relayd.row(Row{
		Text: "CA file cannot be used", Exit: Config,
		Cause:  "It is missing, or has no certificate.",
		Advice: "copy ca.pem from the state directory of the appliance, and name it with --ca or appliance.ca",
	})
	DeviceClock = relayd.row(Row{
		Text: "a clock is wrong", Exit: Unavailable,
		Cause:  "The clock of the device is outside the dates of the appliance's certificate. Nothing was sent.",
		Advice: "set the clock, then try again with the same code",
	})
	NoAnswerOfAppliance = relayd.row(Row{
		Text: "server unreachable, or timeout", Exit: Unavailable,
		Cause:  "No appliance answers at the address, or the CA file is another appliance's.",
		Advice: "check address and CA file, and that the appliance runs",
	})
	ApplianceBusy = relayd.row(Row{
		Text: "appliance answered 429 or 503", Exit: Unavailable,
		Cause:  "The appliance is busy, or its HSM or its database is not available.",
		Advice: "try again later with the same code",
	})
	EnrolmentRefused = relayd.row(Row{
		Text: "appliance answered 403 or another refusal", Exit: Auth,
		Cause:  "The code was used, withdrawn or has expired, or is a client's.",
		Advice: "ask for another code: countersignctl device invite",
	})
	WrongAppliance = relayd.row(Row{
		Text: "certificate", Exit: Auth,
		Cause:  "The server is not certified by the root that the activation code names.",
		Advice: "this is not the appliance that the code is for: check the address and the code",
	})
)

// Start and status of the daemon.
var (
	DeviceNotEnrolled = relayd.row(Row{
		Text: "device is not enrolled", Exit: Config,
		Cause:  "The state directory has no device.",
		Advice: "relayd enrol --config FILE --code-file FILE",
	})
	StateInUse = relayd.row(Row{
		Text: "state directory is in use", Exit: TryAgain, Advice: "stop the other relayd first",
	})
	NoOrderSocket = relayd.row(Row{
		Text: "the order socket cannot be made", Exit: IO,
		Cause:  "Its directory is missing or not writable, the path is too long, or another program listens there.",
		Advice: "correct order.socket: its directory must exist, and relayd may create files there",
	})
	NoLink = relayd.row(Row{
		Text: "a link for phones cannot be opened", Exit: IO,
		Advice: "correct link.listen: no other program may use the address, and the directory of a Unix socket " +
			"must exist",
	})
	NoDisplay = relayd.row(Row{
		Text: "opening display", Exit: IO,
		Advice: "correct display: its directory must exist, and relayd may write to it",
	})
	NoOps = relayd.row(Row{
		Text: "listening for operators", Exit: IO, Advice: "correct ops.listen: no other program may use the address",
	})
	NoReadyFile = relayd.row(Row{
		Text: "the ready file cannot be written", Exit: IO,
		Advice: "correct --ready-file: its directory must exist, and relayd may create files there",
	})
	NoHook = relayd.row(Row{
		Text: "hook cannot be started", Exit: Config,
		Cause:  "The program or its interpreter is missing or not executable, or its first line ends in CR LF.",
		Advice: "correct hook.command, or the program that it names",
	})
	JournalDamaged = relayd.row(Row{
		Text: "journal is corrupt", Exit: IO,
		Cause:  "A line in the middle of the journal cannot be read.",
		Advice: "without its journal the device could act twice: examine the file before you move it away",
	})
	JournalStopped = relayd.row(Row{
		Text: "the journal cannot be written", Exit: IO,
		Cause:  "relayd has stopped, because it acts on nothing that it cannot store first.",
		Advice: "find out why the journal in the state directory cannot be written: the disk may be full",
	})
	StateUnreadable = relayd.row(Row{
		Text: "a file of the state directory cannot be used", Exit: IO,
		Advice: "check the state directory: its owner is the user that relayd runs as",
	})
	DeviceStopped = relayd.row(Row{
		Text: "relayd is not running", Exit: Unavailable, Advice: "start it: relayd serve --config FILE",
	})
	DeviceUnable = relayd.row(Row{
		Text: "the device cannot authorize now", Exit: Unavailable,
		Cause: "The appliance is not reachable or refuses the device, a clock is wrong, or the hook cannot be " +
			"started.",
		Advice: "the line above and relayd's log say why",
	})
)
