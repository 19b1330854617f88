package fault

var probe = chapter("countersignctl hsm probe, bench and uri")

// Trying a module.
var (
	ProbeInterrupted = probe.row(Row{
		Text: "context canceled", Exit: Interrupted,
		Advice: "its objects on the token were removed, or the next run removes them",
	})
	ProbeHangs = probe.row(Row{
		Text: "context deadline exceeded", Exit: Unavailable,
		Advice: "the module hangs; the next run removes what this one made",
	})
	ProbePIN = probe.row(Row{
		Text: "HSM refused the PIN", Exit: Auth,
		Advice: "check the PIN: it was tried at most once and is not tried again, so that the token does not lock",
	})
	ProbeNoToken = probe.row(Row{
		Text: "HSM unavailable", Exit: Unavailable,
		Advice: "check --module, --token-label and --worker-binary or the configuration; countersignctl hsm uri " +
			"pkcs11: lists the tokens",
	})
	ProbeLacks = probe.row(Row{
		Text: "the appliance cannot run on this token: it lacks {missing}", Exit: Failed,
		Advice: "ask the vendor for the mechanism, or whether it is switched off by the token's policy",
	})
	ProbeWhichToken = probe.row(Row{
		Text: "neither --token-label nor --token-serial", Exit: Usage,
		Advice: "countersignctl hsm uri pkcs11: --module … lists the tokens",
	})
	BenchBounds = probe.row(Row{
		Text: "--workers, --sessions, --callers or --time is out of bounds", Exit: Usage,
		Advice: "1 to 64 workers, 1 to 1024 sessions, 10ms to 1m",
	})
	BenchOperation = probe.row(Row{
		Text: "no operation {name}", Exit: Usage, Advice: "one of: {operations}",
	})
	InitTokenUsage = probe.row(Row{
		Text: "a development token", Exit: Usage,
		Cause:  "hsm-probe init-token was run by hand.",
		Advice: "countersignd dev starts it",
	})
	NoTokenFits = probe.row(Row{
		Text: "{reasons}", Exit: NotFound,
		Cause:  "No token fits the URI. The message says how each differs.",
		Advice: "countersignctl hsm uri pkcs11: lists the tokens",
	})
	BadURI = probe.row(Row{
		Text: "pkcs11:", Exit: Usage, Cause: "The argument is no PKCS#11 URI (RFC 7512).",
		Advice: "for example pkcs11:token=countersign?module-path=/usr/lib/softhsm/libsofthsm2.so",
	})
)
