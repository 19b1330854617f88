package fault

var shared = chapter("Every program")

// Command lines, files and output.
var (
	CommandLine = shared.row(Row{
		Text: "{error}", Exit: Usage,
		Cause:  "The command line has an unknown command or flag, or a value that is not allowed.",
		Advice: "see {command} --help",
	})
	NeedsCommand = shared.row(Row{
		Text: "{command} needs a command", Exit: Usage, Advice: "one of: {commands}",
	})
	UnknownCommand = shared.row(Row{
		Text: "unknown command {word} for {command}", Exit: Usage, Advice: "{suggestion}",
	})
	WasInterrupted = shared.row(Row{
		Text: "interrupted", Exit: Interrupted, Cause: "SIGINT or SIGTERM ended the command.",
	})
	Output = shared.row(Row{
		Text: "writing output: {error}", Exit: IO,
		Cause: "Standard output cannot be written: the disk is full, or its reader is gone.",
	})
)

// Questions and secrets.
var (
	TwoCodes = shared.row(Row{
		Text: "--code-file and CODE are both given", Exit: Usage, Advice: "give one of them",
	})
	NoCode = shared.row(Row{
		Text: "standard input has no activation code", Exit: Usage, Cause: "Or standard input cannot be read.",
		Advice: "give --code-file FILE, or write the code to standard input",
	})
	NoTerminal = shared.row(Row{
		Text: "no terminal to ask for a secret on", Exit: Auth,
		Advice: "run it in a terminal, or let the secret come from a file, a credential or a file descriptor",
	})
	ReadSecret = shared.row(Row{
		Text: "reading a secret: {error}", Exit: Auth,
		Cause:  "The terminal is gone. Nothing was tried.",
		Advice: "run it again in a terminal",
	})
	NoSecret = shared.row(Row{
		Text: "no secret was entered", Exit: Auth,
		Cause:  "The answer was empty. Nothing was tried.",
		Advice: "run it again",
	})
	NoAnswer = shared.row(Row{
		Text: "no answer: the input has ended", Exit: Usage, Advice: "answer the question, or use --yes in a script",
	})
	ReadAnswer = shared.row(Row{
		Text: "reading the answer: {error}", Exit: IO,
		Cause:  "The terminal is gone. Nothing was changed.",
		Advice: "run it again in a terminal",
	})
	LongAnswer = shared.row(Row{
		Text: "an answer of more than {bytes} bytes", Exit: Usage,
		Cause:  "Nothing was changed.",
		Advice: "answer with one short line",
	})
)

// Tokens.
var TokenDenied = shared.row(Row{
	Text: "no permission for the token's files", Exit: Unavailable,
	Advice: "run it as a user who may use the token's files, or add this user to their group (for SoftHSM: " +
		"softhsm) and log in again",
})
