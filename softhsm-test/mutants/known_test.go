package mutants

// mutant is a known mutant: one decision, changed in one way or in several that belong together.
type mutant struct {
	number  int
	meaning string
	edits   []edit
}

func one(symbol, old, to string) []edit { return []edit{{symbol, old, to}} }

// known are mutants of decisions that matter. An edit names its function and a text that occurs once
// in it. After a change of the function, find the new place by the meaning.
var known = []mutant{
	{1, "policy: a level does not require its UV key", one("policy.Decide",
		"required.Factors &^= protocol.FactorStrict", "required.Factors &^= protocol.FactorStrict | protocol.FactorUV")},
	{2, "policy: the amount of a tier is below the tier", one("policy.service.level",
		"minor >= t.from", "minor > t.from")},
	{3, "store: limits are not looked at", one("appliance/store.Charge.exceeds",
		"return overAmount || overCount", "return false && (overAmount || overCount)")},
	{4, "store: the password is locked after 21 wrong ones", one("appliance/store.Guard.Locked",
		"g.Wrong >= HardLock", "g.Wrong > HardLock")},
	{5, "store: a try begins before the last one was answered", one("appliance/store.AnswerKey.outOfTurn",
		"n != answered", "n < answered")},
	{6, "store: the policy changed meanwhile, and the approval stands", one("appliance/store.Spend.ownObjection",
		"case v.PolicyVersion != s.PolicyVersion:", "case false:")},
	{7, "store: a client record that does not fit its seal is taken", one("appliance/store/sqlite.clientRow.open",
		"err := v.check(r.Client, r.clientSeal); err != nil", "err := v.check(r.Client, r.clientSeal); err != nil && false")},
	{8, "parties: a device certificate older than the enrolment is taken", one("appliance/parties.Parties.DeviceOf",
		"if keyuse.IssuedAt(cert)", "if false && keyuse.IssuedAt(cert)")},
	{9, "receipt: the device does not check the challenge", one("protocol/receipt.Check.checkRequest",
		"protocol.NewChallenge(c.Nonce, d.U) != c.newest()", "false")},
	{10, "journal: a transaction begins twice", one("relay/journal.Journal.Begin",
		"; isKnown {", "; isKnown && false {")},
	{11, "pool: a signature of the token is not verified", one("hsm/pool.Pool.Sign",
		"if !p.cfg.Unverified {", "if p.cfg.Unverified {")},
	{12, "restore: --root is ignored", one("cmd/countersignd.restoreCommand",
		"cmp.Or(root, cfg.Trust.Root)", "cmp.Or(cfg.Trust.Root)")},
	{13, "restore: a challenge from before it is taken", one("appliance/recovery/backup.Merged.Recovered",
		"settings.HandleEpoch = keyring.NewHandleEpoch()", "")},
	{14, "requests: a stale change request is executed", one("appliance/change/requests.Service.refuseStaleLocked",
		"base == c.Base", "(base == c.Base || true)")},
	{15, "keyuse: a MAC is asked once instead of until two agree", one("appliance/keyuse.agreed",
		"before = append(before, answer)", "return answer, nil")},
	{16, "keylife: a key is retired while records are under it", one("appliance/keylife.Service.freed",
		"under > 0", "under > total")},
	{17, "store: a client approves its own payment", one("appliance/store.Spend.firstObjection",
		"s.Client == s.Approves.Client", "false")},
	{18, "authorize: a clock that went back before the issue of a challenge is not noticed", one(
		"appliance/authorize.handle.expired", "age < 0 || ", "")},
	{19, "receipt: strict: the statement's amount is not compared", one("protocol/receipt.Check.checkStatement",
		"!sameAmount(f.P2.Amount, d.Amount)", "false")},
	{20, "backup: a database statement of another appliance is taken", one("appliance/recovery/backup.Backup.Vouched",
		"!by.follows(b.Signature)", "false")},
	{21, "parties: a revoked device is taken", one("appliance/parties.Parties.Device",
		"device.Status != store.Active", "false")},
	{22, "authorize: a handle is not bound to its device", []edit{
		{"appliance/authorize.Service.seal", "derive.HandleAAD(to.device,", "derive.HandleAAD(protocol.DeviceID{},"},
		{"appliance/authorize.Service.openAny", "derive.HandleAAD(from.device,", "derive.HandleAAD(protocol.DeviceID{},"},
	}},
	{23, "quorum: a record stands however few signed its request", one("appliance/change/quorum.Judge.verifyRequest",
		"max(row.Required, 1)", "1")},
	{24, "relay: a denied result is handled as an approval", one("relay.Relay.decide",
		"case protocol.ResultApproved:", "case protocol.ResultApproved, protocol.ResultDenied:")},
	{25, "requests: a suspended administrator's signature counts", one("appliance/change/requests.Service.count",
		"one.Status == store.Active", "one.Status != store.Revoked")},
	{26, "authorize: refusals are not held", one("appliance/authorize.Service.AnswerAfter",
		"return a.refusal", "return 0")},
	{27, "authorize: strict evidence comes with a certificate that lacks the UV key", one("appliance/authorize.Service.issuedTo",
		"if err == nil && !cert.Doubtful", "if cert.UVKey = i.keys.UVKey; err == nil && !cert.Doubtful")},
	{28, "quorum: a check is believed after the request has changed", one("appliance/change/quorum.Judge.verifyRequest",
		"content := contentOf(row)", "content := sha256.Sum256(r.Change[:])")},
	{29, "relay: the default of the result switch acts", one("relay.Relay.decide",
		"default:\n", "default:\n\t\te.kind = approved\n")},
	{30, "receipt: a decision for another device is taken", one("protocol/receipt.Check.checkRequest",
		"d.Device != c.Device", "false")},
	{31, "authorize: a handle older than a day is taken", one("appliance/authorize.Service.unseal",
		" || current-hour > hoursKept", "")},
	{32, "enrol: an expired activation code passes the appliance's own check", one("appliance/enrol.Service.invitation",
		", s.now().After(i.ExpiresAt)", "")},
	{33, "relay: a failed check of the decision is ignored", one("relay.Relay.check",
		"}.Verify(decision)\n", "}.Verify(decision)\n\tif err != nil {\n\t\td, err = receipt.Verify(trust.Keyring{"+
			"Root: pinned.Root, KeyCerts: pinned.KeyCerts(trust.UseDecision), Now: uint64(time.Now().Unix())}, decision)\n\t}\n")},
	{34, "admin socket: the credentials of the peer are ignored", one("appliance/adminapi/server.ownUser.Accept",
		"(peer.Uid == 0 || int(peer.Uid) == os.Getuid())", "(peer.Uid == 0 || os.Getuid() >= 0)")},
	{35, "backup: the known root is looked for in the payload instead of the chain", one("appliance/recovery/backup.Known.open",
		"!slices.ContainsFunc(roots, func(r trust.RootCert) bool { return r.Key == known.Root })",
		"!bytes.Contains(s.Payload, known.Root[:])")},
	{36, "authorize: a UV key is certified from a record whose certificate does not fit", one("appliance/authorize.Service.issuedTo",
		"return i, a.keys.Seals().Report(", "return i, func(string) error { return nil }(")},
}
