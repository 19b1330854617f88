package mutants

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// deciding lists the functions that decide, by package: whether something is granted, taken, believed or
// refused. A pattern is a function or a type with a method; * is any name, and a pattern that
// begins with - leaves functions out.
var deciding = map[string]string{
	"policy": "* -checker.fail -*.String -Problems.Error -decodeProblem -Default -Kinds",
	"appliance/store": "Spend.* Attempt.* AnswerKey.* Guard.* Restraint.* Charge.* Window.* Seals.* Pending.* Invitation.SameRequest " +
		"partiesObjection sameWindow sum isOver -Spend.record -Spend.further -Spend.finalRecord -Spend.settledRecord " +
		"-Seals.Alarm -Seals.Forged -Seals.report",
	"appliance/store/head": "* -Kind.String -Kinds",
	"appliance/store/sqlite": "vault.* txn.move txn.within txn.head txn.spend txn.conclude txn.spent txn.view txn.viewFirst " +
		"txn.attempt txn.begun txn.use unused clientRow.open clientRow.read openClient openDevice openAttempt openInvitation " +
		"keptRow.open txn.nameFree txn.freeClientName",
	"appliance/authorize":       "Service.* countersigned.* handleKeys.* agree charges codeFor signingKey slow handle.expired -Service.refuseApply",
	"appliance/change":          "* -Request.Effect -Request.keyStep -Request.step -Request.invitation -Parameters.stays -roleWords -hours",
	"appliance/change/quorum":   "*",
	"appliance/change/requests": "Service.* transient -Service.transcript -Service.Expire -Service.List",
	"appliance/rules":           "Rules.* recordOf -Rules.Warn -Rules.History",
	"appliance/parties":         "* -Record -Changed -changedParty -New -Absent -Missing -Taken -worded.Error -final",
	"appliance/enrol":           "* -New",
	"appliance/keyring":         "Key.* Ring.* New ParseSettings IsCertified NewestMAC",
	"appliance/keyring/chain":   "*",
	"appliance/keyplan":         "planner.* successor overlapEnd",
	"appliance/keylife":         "Service.freed Service.under Service.draft Service.rootBase Service.unchanged asRequested Service.wasTaken stepOf onlyIdle rulesOut seen",
	"appliance/keyuse": "Keys.Recipient Keys.ReadClientCert Keys.CheckVerifier Keys.ImportVerifier Keys.MACKeys Keys.PairwiseKey Keys.MAC " +
		"Keys.TrustDocument Keys.follow agreed CheckMAC hasProof published rulingBefore Pins.* SealKeys",
	"appliance/anchor":           "Anchor.check File.Advance File.Root File.Floor",
	"appliance/recovery/custody": "Distinct Passphrase different curvePoint",
	"appliance/recovery/backup":  "Known.* signed.verify Signature.* Backup.* State.counts Merge overrule inUse sameKey newer Cover Read",
	"appliance/recovery/restore": "Host.CheckVacant Host.Unfinished restoration.readBackup restoration.checkDatabase restoration.readStatement " +
		"restoration.readShares restoration.took",
	"appliance/adminapi/server": "ownUser.* Peer listen",
	"appliance/api":             "API.caller gate.* crowd.* oldestIdle Identity.judge Identity.Judge",
	"protocol/trust":            "* -Use.String -*.MarshalJSON -DateError.* -KeyCert.DateError -date",
	"protocol/receipt":          "Check.* checkSecond checkedEvidence.* parseEvidence Verify VerifyKept Parse sameAmount signed.verify",
	"protocol/password":         "CheckLength LengthOf",
	"protocol/enrol":            "Parse* Response.Check checkPEM enrolJSON.* passwordJSON.* optional",
	"protocol/message":          "P2.* Channel.Open* VerifyCountersign Parse* CheckText checkKind checkSuite ChallengeOf M1.Open",
	"relay": "progress.* challenge.* registry.* Relay.verify Relay.check Relay.decide Relay.undecided Relay.begin Relay.pend " +
		"Relay.answerM1 Relay.answerM3 Relay.isFinal Relay.reportAll Hook.run wantKind checkOrder",
	"relay/journal":         "Journal.Begin Journal.Finish Journal.advance Journal.Unsettled Journal.appendLocked Journal.compactLocked Journal.read Journal.cut torn parseLine Open",
	"hsm/pool":              "cachedKey.* Guard.* Pool.Sign Pool.prove Pool.proveKey Pool.testKey Pool.testMAC length kept",
	"hsm/internal/check":    "*",
	"hsm/internal/hostseal": "Seal Open",
}

// deciding returns the functions that decide, by symbol, and the patterns that fit none.
func (t *tree) deciding() (all []*function, missing []string) {
	for _, pkg := range slices.Sorted(maps.Keys(deciding)) {
		patterns := strings.Fields(deciding[pkg])
		used := map[string]bool{}
		for _, symbol := range slices.Sorted(maps.Keys(t.functions)) {
			f := t.functions[symbol]
			name := strings.TrimPrefix(symbol, pkg+".")
			if f.pkg != pkg {
				continue
			}
			in := false
			for _, pattern := range patterns {
				out, without := strings.CutPrefix(pattern, "-")
				if fits, _ := path.Match(out, name); fits { // the patterns are well formed, or fit nothing
					used[pattern], in = true, !without
				}
			}
			if in {
				all = append(all, f)
			}
		}
		for _, pattern := range patterns {
			if !used[pattern] {
				missing = append(missing, pkg+"."+strings.TrimPrefix(pattern, "-"))
			}
		}
	}
	return all, missing
}

// decidingPackages returns the packages of all mutants.
func decidingPackages() []string {
	all := map[string]bool{}
	for pkg := range deciding {
		all[pkg] = true
	}
	for _, m := range known {
		for _, e := range m.edits {
			if i := strings.Index(e.symbol[strings.LastIndex(e.symbol, "/")+1:], "."); i > 0 {
				all[e.symbol[:strings.LastIndex(e.symbol, "/")+1+i]] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}
