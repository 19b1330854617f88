package fault

var files = chapter("Configuration and secrets")

// Configuration files.
var (
	ConfigUnread = files.row(Row{
		Text: "reading configuration", Exit: Config, Cause: "The file is missing, or this user may not read it.",
		Advice: "name the file with --config",
	})
	ConfigWrong = files.row(Row{
		Text: "config.toml:12: hsm.workers: …", Exit: Config,
		Cause:  "Every problem of the file is listed with its line.",
		Advice: "correct the configuration; the sample file explains every key",
	})
)

// Secrets. They are refused before anything is tried with them.
var (
	SecretNone = files.row(Row{
		Text: "reading secret from", Exit: Auth,
		Cause: "The secret is missing, empty, longer than 4096 bytes, of more than one line, or in UTF-16. " +
			"Nothing was tried with it.",
		Advice: "put the secret there, or name another place in the configuration",
	})
	SecretFile = files.row(Row{
		Text: "it is empty", Exit: Auth,
		Cause: "A file with a secret cannot be read, or its text is not one line of at most 4096 bytes. Nothing " +
			"was tried with it.",
		Advice: "write the secret into the file as one line of UTF-8, with mode 0600",
	})
	SecretOwner = files.row(Row{
		Text: "its owner must be", Exit: Auth,
		Cause:  "The file of a secret belongs to a user who is neither this one nor root.",
		Advice: "run as root: chown {user} {path} && chmod 600 {path}",
	})
	SecretMode = files.row(Row{
		Text: "lets users other than its owner use the file", Exit: Auth, Advice: "run: chmod 600 {path}",
	})
	SecretGroup = files.row(Row{
		Text: "let users other than root", Exit: Auth,
		Cause: "The file of a secret belongs to root, and its group or mode admits others.",
		Advice: "run as root: chgrp {group} {path} && chmod 640 {path} (in Kubernetes: fsGroup {group} and " +
			"defaultMode 0440)",
	})
	SecretGuarded = files.row(Row{
		Text: "lets every user use the file", Exit: Auth,
		Cause:  "The file is a credential of systemd.",
		Advice: "run: chmod o= {path}",
	})
)
