package fault

var custodians = chapter("Shares of a backup key")

// Reading shares.
var (
	NoShare = custodians.row(Row{
		Text: "no share was given", Exit: Usage, Advice: "name each custodian's file: --share FILE",
	})
	ReadShare = custodians.row(Row{
		Text: "reading a share: {error}", Exit: IO,
		Advice: "check the path of --share, and that this user may read the file",
	})
	ReadIdentity = custodians.row(Row{
		Text: "reading identities: {error}", Exit: IO,
		Advice: "check the path of --identity, and that this user may read the file",
	})
	BadIdentity = custodians.row(Row{
		Text: "{path}: {error}", Exit: Auth, Cause: "The file of --identity holds no age identity.",
		Advice: "a custodian with another kind of key decrypts the share with age -d and gives that file",
	})
	ShareSealed = custodians.row(Row{
		Text: "no identity opens this share", Exit: Auth, Cause: "It is for another custodian's key or passphrase.",
		Advice: "give the custodian's own identity, --identity FILE, or passphrase",
	})
	ShareDamaged = custodians.row(Row{
		Text: "not a share of a backup key", Exit: Failed,
		Advice: "the file was damaged or changed: use the custodian's other copy, or another custodian's share",
	})
	SharesMixed = custodians.row(Row{
		Text: "of different backup keys", Exit: Failed,
		Advice: "countersignctl key custodians check prints the backup key of each share",
	})
	SameCustodian = custodians.row(Row{
		Text: "custodians 1 and 2 have the same key or passphrase", Exit: Usage,
		Cause: "One person would hold two shares. No key was generated. Custodians are counted in the order of " +
			"--recipient, --passphrase-file and --passphrases.",
		Advice: "give each custodian, counted in the order of --recipient, --passphrase-file and --passphrases, a " +
			"key or passphrase of their own",
	})
	SharesFew = custodians.row(Row{
		Text: "not enough shares", Exit: Denied, Cause: "They are fewer than M different shares of a set.",
		Advice: "bring in more custodians: fewer shares than the threshold reveal nothing of the key",
	})
)
