package fault

var phone = chapter("countersign-client")

// Results of the protocol (PROTOCOL.md §4). The program prints the text alone, or after "the appliance denied it".
var (
	CodeFormat = phone.row(Row{
		Text: "format", Exit: Failed,
		Cause:  "A message was damaged, or one of the programs is too old.",
		Advice: "try again; if it fails again, bring client, device and appliance to one release",
	})
	CodeVersion = phone.row(Row{
		Text: "version or suite", Exit: Failed,
		Cause:  "One of the programs is too old.",
		Advice: "bring client, device and appliance to one release",
	})
	CodeStaleKey = phone.row(Row{
		Text: "stale key", Exit: TryAgain,
		Cause:  "The appliance has newer keys, and the client now knows them.",
		Advice: "try again; if that fails too, enrol again",
	})
	CodeRefused = phone.row(Row{
		Text: "refused", Exit: Denied,
		Cause:  "The appliance does not say more to a client that it does not know or does not serve.",
		Advice: "ask the operator whether this client is enrolled and active",
	})
	CodeSuspended = phone.row(Row{
		Text: "suspended", Exit: Denied,
		Advice: "ask the operator why: countersignctl client show, then client resume",
	})
	CodeService = phone.row(Row{
		Text: "service not allowed", Exit: Denied,
		Advice: "the device does not offer this service now",
	})
	CodeLevel = phone.row(Row{
		Text: "level not available", Exit: Denied,
		Advice: "the required level is above what this client can provide, or below what it accepts",
	})
	CodeExpired = phone.row(Row{
		Text: "handle dead or challenge expired", Exit: TryAgain,
		Advice: "start again, and answer within the time shown",
	})
	CodeSignature = phone.row(Row{
		Text: "bad countersignature", Exit: BadSignature,
		Cause:  "The appliance could not verify the signature of this client.",
		Advice: "enrol again with another --state; inform the operator",
	})
	CodePassword = phone.row(Row{
		Text: "bad password", Exit: Denied,
		Advice: "start again with the right password; too many wrong ones lock the client",
	})
	CodeLocked = phone.row(Row{
		Text: "locked", Exit: Denied,
		Advice: "wait for the time shown, or ask the operator to run countersignctl client unlock",
	})
	CodePolicy = phone.row(Row{
		Text: "policy", Exit: Denied, Cause: "A second person may also lack the role that the policy asks for.",
		Advice: "the policy does not allow this, or it or the sum of your approvals has changed: start again, and " +
			"ask the operator if it is denied again",
	})
	CodeLimit = phone.row(Row{
		Text: "limit", Exit: Denied,
		Cause:  "A limit of the policy for this service is used up.",
		Advice: "wait until the window of the limit has passed, or ask the operator",
	})
	CodeSerial = phone.row(Row{
		Text: "serial conflict", Exit: Denied,
		Cause: "The appliance knows another authorization under this number, or a newer one.",
		Advice: "start again; if it happens again, another party may use a copy of this client's state: inform the " +
			"operator",
	})
	CodeDevice = phone.row(Row{
		Text: "device not authorized", Exit: Denied,
		Advice: "the appliance does not serve this device: use another one, and inform the operator of this one",
	})
	CodeBusy = phone.row(Row{
		Text: "busy", Exit: Unavailable,
		Cause:  "The appliance has too much to do.",
		Advice: "try again in a moment",
	})
	CodeHSM = phone.row(Row{
		Text: "HSM unavailable", Exit: Unavailable,
		Advice: "inform the operator of the appliance",
	})
	CodeUserRefused = phone.row(Row{
		Text: "user refused", Exit: Denied,
		Cause: "You refused. Nothing was done.",
	})
	CodeCertificate = phone.row(Row{
		Text: "certificate", Exit: BadSignature,
		Advice: "this is not the appliance that the activation code is for, or an attack",
	})
	CodeFasterLink = phone.row(Row{
		Text: "needs a faster link", Exit: Denied,
		Advice: "use a device with a faster link, or start again without --receipt",
	})
	CodePending = phone.row(Row{
		Text: "awaiting second approver", Exit: TryAgain,
		Cause:  "Nothing was done yet.",
		Advice: "another person approves at the same device with countersign-client approve --link LINK",
	})
	CodeReplayed = phone.row(Row{
		Text: "replayed decision", Exit: BadSignature,
		Cause:  "The answer is of an earlier authorization: an attack, or a fault of the device.",
		Advice: "do not rely on it; start again, and inform the operator of the device",
	})
	CodeClone = phone.row(Row{
		Text: "clone alarm", Exit: Denied,
		Cause:  "The numbers of this client were used elsewhere: its state was copied.",
		Advice: "inform the operator at once; enrol again with another --state",
	})
	CodeAmountDiffers = phone.row(Row{
		Text: "amount differs", Exit: Denied,
		Advice: "the device asks for another amount than you gave: agree on the amount, then start again",
	})
	CodeAmountMissing = phone.row(Row{
		Text: "amount missing", Exit: Denied,
		Advice: "neither you nor the device gave an amount: start again with --amount",
	})
	CodeOwnApproval = phone.row(Row{
		Text: "own approval", Exit: Denied,
		Advice: "this is your own request: another person with the role has to approve it",
	})
	CodeTextDiffers = phone.row(Row{
		Text: "text differs", Exit: Denied,
		Advice: "the device gives another text than you did: start again without --text, and read what it shows",
	})
	CodeAmountNotAllowed = phone.row(Row{
		Text: "amount not allowed", Exit: Denied,
		Cause:  "The policy has no price for the service, or one in another currency.",
		Advice: "start again without an amount, or with one in the currency of the service",
	})
	CodeServerUnreachable = phone.row(Row{
		Text: "server unreachable", Exit: Unavailable,
		Advice: "check that the appliance is running and can be reached",
	})
	CodeTimeout = phone.row(Row{
		Text: "timeout", Exit: Unavailable,
		Advice: "check that the device is in reach and try again",
	})
	CodeLink = phone.row(Row{
		Text: "link", Exit: Unavailable,
		Advice: "check that the device is in reach and try again",
	})
	CodeLinkBusy = phone.row(Row{
		Text: "link busy", Exit: TryAgain,
		Advice: "another client is using the device; try again in a moment",
	})
	CodeNothingToApprove = phone.row(Row{
		Text: "nothing to approve", Exit: TryAgain,
		Advice: "the device has no order yet: have it placed at the device, then try again",
	})
	NoRequestWaits = phone.row(Row{
		Text: "unknown or disabled service", Exit: Denied,
		Cause: "The phone came to approve another person's request.",
		Advice: "no request waits for a second person at this device: have the first person start, then approve " +
			"within its time",
	})
	CodeUnknown = phone.row(Row{
		Text: "code {number}", Exit: Failed,
		Cause: "A newer appliance denies it by a code that this client does not know. The exit code is 3 if the " +
			"appliance denied it.",
		Advice: "PROTOCOL.md of a newer release explains the code; ask the operator",
	})
)

// Outcomes, and what the client keeps.
var (
	DeniedPending = phone.row(Row{
		Text: "authorization {serial}: awaiting second approver", Exit: TryAgain, Cause: "Nothing was done yet.",
		Advice: "another person approves at the same device with countersign-client approve --link LINK; then " +
			"countersign-client status {serial} --link LINK shows the outcome",
	})
	YouRefused = phone.row(Row{Text: "refused by you", Exit: Denied, Cause: "You refused. Nothing was done."})
	WrongTry   = phone.row(Row{
		Text: "bad password, with tries left", Exit: TryAgain,
		Advice: "run countersign-client resume --link LINK with the right password while the challenge is valid, " +
			"or start again",
	})
	UnknownOutcome = phone.row(Row{
		Text: "outcome is unknown", Exit: TryAgain, Cause: "The link broke after the client had signed.",
		Advice: "it may have been carried out: run countersign-client resume --link LINK while the challenge is " +
			"valid, or countersign-client status --last --link LINK at any time, before you try again",
	})
	OutcomeHidden = phone.row(Row{
		Text: "the appliance does not reveal the outcome: {error}", Exit: TryAgain,
		Advice: "try again later; the outcome stands as it is",
	})
	Contradicted = phone.row(Row{
		Text: "the appliance contradicts the receipt", Exit: Failed,
		Cause:  "The appliance gives another outcome than the receipt that this client has verified.",
		Advice: "inform the operator: the appliance may have returned from an old copy of its data",
	})
	ClientStateInUse = phone.row(Row{
		Text: "another process is using it", Exit: TryAgain, Cause: "Another process has the state directory open.",
		Advice: "wait for the other countersign-client, or use another --state",
	})
	NotEnrolled = phone.row(Row{
		Text: "not enrolled", Exit: NotFound, Advice: "run countersign-client enrol first, or check --state",
	})
	NothingPending = phone.row(Row{
		Text: "no authorization has an unknown outcome", Exit: NotFound,
		Cause:  "No authorization waits to be resumed.",
		Advice: "countersign-client receipts lists all outcomes",
	})
	NoReceipt = phone.row(Row{
		Text: "no such receipt", Exit: NotFound,
		Advice: "countersign-client receipts lists them; authorize --receipt requests a full one",
	})
	NoFullReceipt = phone.row(Row{
		Text: "no full receipt is kept", Exit: NotFound, Advice: "countersign-client authorize --receipt requests one",
	})
	BadReceipt = phone.row(Row{
		Text: "receipt does not verify", Exit: BadSignature, Advice: "do not rely on this receipt",
	})
	GivenUpReceipt = phone.row(Row{
		Text: "signed under a key given up on a date", Exit: BadSignature,
		Cause:  "The key or root that vouches for the receipt was compromised: another party may have signed it.",
		Advice: "another party may have signed it: ask the operator of the appliance whether its records have it",
	})
	ClientEnrolled = phone.row(Row{
		Text: "already enrolled", Exit: Failed, Advice: "use another --state for another enrolment",
	})
	StateDamaged = phone.row(Row{
		Text: "state is damaged", Exit: IO, Cause: "A file of the state directory is damaged, or of a newer release.",
		Advice: "restore the whole directory, or enrol again with another --state",
	})
	StateFile = phone.row(Row{
		Text: "no such file or directory, or permission denied", Exit: IO,
		Advice: "check the directory given with --state",
	})
	NotAuthentic = phone.row(Row{
		Text: "answer is not authentic", Exit: BadSignature,
		Advice: "the device or the link altered the message; nothing was signed",
	})
	ShortPassword = phone.row(Row{
		Text: "the password has 4 characters: this appliance wants at least 6", Exit: Usage,
		Cause:  "The policy of the appliance has a floor for new passwords ([password] min_length). Nothing was sent.",
		Advice: "run it again with a longer password: the activation code is unused",
	})
	FactorMissing = phone.row(Row{
		Text: "this client lacks a factor that the level requires", Exit: Denied,
		Advice: "enrol again with another --state, with a password or --uv as required, or refuse",
	})
	PhoneClock = phone.row(Row{
		Text: "a certificate is not in force", Exit: BadSignature,
		Cause: "A clock is wrong, or a certificate of the appliance has ended. The exit code is 75 if the key may " +
			"only be old.",
		Advice: "check the date and time of this machine and try again; if they are right, check those of the " +
			"appliance",
	})
	EnrolRefused = phone.row(Row{
		Text: "the appliance answers 403", Exit: Auth,
		Cause:  "The activation code was used, withdrawn or has expired, or is a device's.",
		Advice: "ask for another code: countersignctl client invite",
	})
	EnrolGone = phone.row(Row{
		Text: "the appliance answers 404 or 410", Exit: NotFound,
		Advice: "check --url; ask for another code: countersignctl client invite",
	})
	EnrolBusy = phone.row(Row{
		Text: "the appliance answers 429 or 503", Exit: Unavailable, Advice: "try again later with the same code",
	})
	EnrolFailed = phone.row(Row{
		Text: "the appliance answers 400", Exit: Failed,
		Cause:  "The appliance could not read the request, or is of another release.",
		Advice: "check --url, and that client and appliance are of one release",
	})
)

// Command lines, passwords and links.
var (
	PhoneFlags = phone.row(Row{
		Text: "{error}", Exit: Usage,
		Cause:  "A flag or argument has a value that is not allowed. Nothing was sent.",
		Advice: "see {command} --help",
	})
	NoState = phone.row(Row{
		Text: "no state directory", Exit: Usage, Advice: "use --state",
	})
	ClientAddress = phone.row(Row{
		Text: "address {address} is not https://HOST:PORT", Exit: Usage,
		Advice: "give the address of the appliance's API, with the port of api.listen",
	})
	OneDescriptor = phone.row(Row{
		Text: "standard input cannot provide both the code and the password", Exit: Usage,
		Advice: "use another descriptor for the password, such as 3, or --code-file",
	})
	ClientCode = phone.row(Row{
		Text: "an activation code that cannot be read", Exit: Usage,
		Cause:  "A part of the code is missing, or a letter is wrong.",
		Advice: "copy the whole code that countersignctl client invite printed",
	})
	NoServiceNamed = phone.row(Row{
		Text: "no service is called {name}", Exit: Usage, Advice: "give a number, or NAME=NUMBER to name it",
	})
	BadService = phone.row(Row{
		Text: "service", Exit: Usage,
		Cause:  "The value of --service is no number of a service.",
		Advice: "give a number, or NAME=NUMBER to name it",
	})
	ReservedService = phone.row(Row{
		Text: "service {number} is reserved, the first free one is {first}", Exit: Usage,
		Advice: "give a number, or NAME=NUMBER to name it",
	})
	BadServiceName = phone.row(Row{
		Text: "name {name} is not allowed", Exit: Usage,
		Cause:  "It is empty, too long, or has characters that a screen does not show.",
		Advice: "give a number, or NAME=NUMBER to name it",
	})
	NoDevice = phone.row(Row{
		Text: "cannot reach the device: {error}", Exit: Unavailable,
		Advice: "check that the device is in reach and try again",
	})
	CannotAsk = phone.row(Row{
		Text: "cannot ask: standard input is not a terminal", Exit: Usage, Advice: "give --yes or --refuse",
	})
	ShowChallenge = phone.row(Row{
		Text: "showing the challenge: {error}", Exit: IO,
		Cause:  "Standard error cannot be written. Nothing was signed.",
		Advice: "start again in a terminal, or with an output that can be written",
	})
	NotVerified = phone.row(Row{
		Text: "the user was not verified", Exit: Auth,
		Cause:  "The answer to the question was not the right one. Nothing was signed.",
		Advice: "start again",
	})
	PasswordDescriptor = phone.row(Row{
		Text: "password file descriptor {number}: {error}", Exit: IO,
		Advice: "open the descriptor for reading: --password-fd 3 3<FILE",
	})
	LongPassword = phone.row(Row{
		Text: "password of more than {bytes} bytes", Exit: Usage,
		Cause:  "No try was made.",
		Advice: "give a shorter password",
	})
	ReadPassword = phone.row(Row{
		Text: "reading the password: {error}", Exit: IO,
		Cause:  "No try was made.",
		Advice: "start again in a terminal, or with --password-fd",
	})
	NoPassword = phone.row(Row{
		Text: "no password to read", Exit: Auth,
		Cause:  "The input has ended. No try was made.",
		Advice: "write the password to the descriptor, on one line",
	})
	PasswordsDiffer = phone.row(Row{
		Text: "the two passwords differ", Exit: Auth, Cause: "Nothing was enrolled.", Advice: "run it again",
	})
	SerialAndLast = phone.row(Row{
		Text: "give a serial or --last, not both", Exit: Usage, Advice: "see countersign-client status --help",
	})
	LinkNeedsOne = phone.row(Row{
		Text: "--link needs one authorization", Exit: Usage, Advice: "give its serial or --last",
	})
	BadSerial = phone.row(Row{
		Text: "serial", Exit: Usage,
		Cause:  "The argument is no serial of an authorization.",
		Advice: "countersign-client receipts lists the serials",
	})
)
