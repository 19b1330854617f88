package enrol_test

import (
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/enrol"
	"countersign/appliance/parties"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
	protocolenrol "countersign/protocol/enrol"
)

// invited stores the invitation of a client as a reader of the seal keys could, and returns its code.
func invited(b *appliancetest.Bench, i store.Invitation) protocolenrol.ActivationCode {
	b.Helper()
	code := protocolenrol.NewActivationCode(b.Keyring.Root().RootHash(), [13]byte{7})
	i.Code, i.Kind, i.CreatedAt, i.ExpiresAt = sha256.Sum256([]byte(code.String())), store.KindClient, b.Clock.Now(), b.Clock.Now().Add(time.Hour)
	if err := b.Store.Invite(b.Context(), i, audit.NewRecord(audit.KindClients, "client", nil)); err != nil {
		b.Fatal(err)
	}
	return code
}

// TestInvitationNeedsItsRequest: the code of a client enrols if enough administrators signed the
// request that it names, with these roles. A code without a request, of the release before, enrols as
// long as one administrator may invite and replace.
func TestInvitationNeedsItsRequest(t *testing.T) {
	for name, c := range map[string]struct {
		quorum string
		change func(b *appliancetest.Board) change.ID
		good   bool
	}{
		"of the release before":            {"[quorum]\n", func(*appliancetest.Board) change.ID { return change.ID{} }, true},
		"no request, and two are required": {"[quorum]\n\"client.invite\" = 2\n", func(*appliancetest.Board) change.ID { return change.ID{} }, false},
		"no request, and two are required to replace": {
			"[quorum]\n\"client.replace\" = 2\n", func(*appliancetest.Board) change.ID { return change.ID{} }, false,
		},
		"a request that there is not": {"[quorum]\n", func(*appliancetest.Board) change.ID { return change.ID{1} }, false},
		"a request for another": {"[quorum]\n", func(b *appliancetest.Board) change.ID {
			return b.Executes(appliancetest.Invitation("door")).Hash.ID()
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.NewBoard(t, c.quorum)
			code := invited(b.Bench, store.Invitation{Name: "vera", Roles: []string{"approver"}, Change: c.change(b)})
			_, err := b.Enrol.Client(t.Context(), b.Stranger().Request(code))
			if c.good && err != nil || !c.good && !errors.Is(err, protocol.CodeRefused) {
				t.Errorf("enrolled: %v", err)
			}
		})
	}
}

// TestRolesAreSigned: an invitation with a role that its request does not name enrols no one.
func TestRolesAreSigned(t *testing.T) {
	for _, roles := range [][]string{{"guest"}, {"guest", "approver"}} {
		b := appliancetest.NewBoard(t, "[quorum]\n\"client.invite\" = 2\n")
		code := protocolenrol.NewActivationCode(b.Keyring.Root().RootHash(), [13]byte{1})
		sum := sha256.Sum256([]byte(code.String()))
		c := b.Taken(change.Draft{Kind: policy.ClientInvite, Parameters: change.Parameters{
			"name": "vera", "roles": []string{"guest"}, "ttl_s": uint64(60), "code_sha256": sum[:],
		}})
		if len(roles) > 1 { // a reader of the seal keys is faster than the request
			i := store.Invitation{
				Code: sum, Kind: store.KindClient, Name: "vera", Roles: roles, Change: c.Hash.ID(),
				CreatedAt: b.Clock.Now(), ExpiresAt: b.Clock.Now().Add(time.Hour),
			}
			if err := b.Store.Invite(t.Context(), i, audit.NewRecord(audit.KindClients, "client", nil)); err != nil {
				t.Fatal(err)
			}
		}
		if c = b.Resumed(c.Hash.ID()); c.State != store.ChangeExecuted {
			t.Fatal(c.State, c.Reason)
		}
		_, err := b.Enrol.Client(t.Context(), b.Stranger().Request(code))
		if good := len(roles) == 1; good && err != nil || !good && !errors.Is(err, protocol.CodeRefused) {
			t.Errorf("roles %v: %v", roles, err)
		}
	}
}

// oldInvitation drafts the invitation of a device as the release before did.
func oldInvitation(name string, code protocolenrol.ActivationCode, replace bool) change.Draft {
	sum := sha256.Sum256([]byte(code.String()))
	return change.Draft{Kind: policy.DeviceInvite, Parameters: change.Parameters{
		"name": name, "display": name, "floor": uint64(1), "ttl_s": uint64(3600), "replace": replace, "code_sha256": sum[:],
	}}
}

// TestRequestsOfTheReleaseBefore: an open request, and one that was interrupted, invite and replace a
// device after an upgrade.
func TestRequestsOfTheReleaseBefore(t *testing.T) {
	for name, finish := range map[string]func(*appliancetest.Board, change.Draft) store.ChangeState{
		"open": func(b *appliancetest.Board, d change.Draft) store.ChangeState {
			c := b.Waits(d)
			return b.Signed(c, b.Ann.Sign(b.T, c.Hash)).State
		},
		"taken": func(b *appliancetest.Board, d change.Draft) store.ChangeState {
			return b.Resumed(b.Taken(d).Hash.ID()).State
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := appliancetest.NewBoard(t, appliancetest.TwoOfThree)
			for i, device := range []string{"door", "gate"} {
				code := protocolenrol.NewActivationCode(b.Keyring.Root().RootHash(), [13]byte{byte(i)})
				b.Clock.Advance(time.Second)
				if state := finish(b, oldInvitation(device, code, device == "gate")); state != store.ChangeExecuted {
					t.Fatalf("%s: %s", device, state)
				}
				certificate(b.Bench, code)
			}
			if d, err := b.Parties.DeviceNamed(t.Context(), "gate"); err != nil || d.Version != 3 {
				t.Errorf("gate was not replaced: %+v, %v", d, err)
			}
		})
	}
}

// TestReplaceTakesAnInvitationsQuorum: to replace a party that there is not is to invite one.
func TestReplaceTakesAnInvitationsQuorum(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"client.invite\" = 2\n\"device.invite\" = 2\n\"device.replace\" = 1\n")
	for _, kind := range []store.Kind{store.KindClient, store.KindDevice} {
		c, err := b.Enrol.PreviewInvite(t.Context(), enrol.Invite{Kind: kind, Name: "new", Replace: true})
		if err != nil || c.Required != 2 {
			t.Errorf("%s takes %d: %v", c.Kind, c.Required, err)
		}
	}
}

// TestSuspendedMeanwhile: a request that was interrupted after it had resumed a client does not resume
// it again once it was suspended since. One that was interrupted before does.
func TestSuspendedMeanwhile(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"client.resume\" = 2\n\"device.resume\" = 2\n")
	b.EnrolPhone("alice")
	suspend := func(to store.Status) {
		t.Helper()
		if _, err := b.Parties.SetClientStatus(t.Context(), "alice", to); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Parties.SetDeviceStatus(t.Context(), "gate", to); err != nil {
			t.Fatal(err)
		}
	}
	taken := func() (ids []change.ID) {
		t.Helper()
		client, _, err := b.Enrol.DraftResumeClient(t.Context(), "alice")
		device, _, err2 := b.Enrol.DraftResumeDevice(t.Context(), "gate")
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return []change.ID{b.Taken(client).Hash.ID(), b.Taken(device).Hash.ID()}
	}
	status := func(want store.Status) {
		t.Helper()
		d, err := b.Parties.DeviceNamed(t.Context(), "gate")
		if c := b.Client("alice"); err != nil || c.Status != want || d.Status != want {
			t.Errorf("alice is %s, gate is %s, want %s: %v", c.Status, d.Status, want, err)
		}
	}
	suspend(store.Suspended)
	for _, id := range taken() {
		if c := b.Resumed(id); c.State != store.ChangeExecuted {
			t.Errorf("not yet resumed: %s, %s", c.State, c.Reason)
		}
	}
	status(store.Active)

	suspend(store.Suspended)
	ids := taken()
	suspend(store.Active) // as the requests did before they were interrupted
	for _, id := range ids {
		if c := b.Resumed(id); c.State != store.ChangeExecuted {
			t.Errorf("resumed already: %s, %s", c.State, c.Reason)
		}
	}
	status(store.Active)

	suspend(store.Suspended)
	ids = taken()
	suspend(store.Active)
	suspend(store.Suspended)
	for _, id := range ids {
		if c := b.Resumed(id); c.State != store.ChangeFailed {
			t.Errorf("suspended since: %s", c.State)
		}
	}
	status(store.Suspended)
}

// TestUnlockedOnce: a request that was interrupted after it had unlocked a client does not forget the
// wrong passwords since.
func TestUnlockedOnce(t *testing.T) {
	b := appliancetest.NewBoard(t, "[quorum]\n\"client.unlock\" = 2\n")
	alice := b.EnrolFull("alice")
	wrong := func() {
		s := alice.Challenge(appliancetest.Payment, appliancetest.EUR(6000))
		s.Must(s.With(0, slices.Repeat([]byte{1}, 16)))
	}
	wrong()
	wrong()
	d, needed, err := b.Enrol.DraftUnlock(t.Context(), "alice")
	if err != nil || !needed {
		t.Fatal(needed, err)
	}
	id := b.Taken(d).Hash.ID()
	if _, err := b.Parties.Unlock(t.Context(), "alice"); err != nil { // as the request did
		t.Fatal(err)
	}
	wrong()
	if c := b.Resumed(id); c.State != store.ChangeExecuted || b.GuardOf(alice).Wrong != 1 {
		t.Errorf("%s, %d wrong passwords", c.State, b.GuardOf(alice).Wrong)
	}
	d, _, err = b.Enrol.DraftUnlock(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if c := b.Resumed(b.Taken(d).Hash.ID()); c.State != store.ChangeExecuted || b.GuardOf(alice).Wrong != 0 {
		t.Errorf("%s, %d wrong passwords", c.State, b.GuardOf(alice).Wrong)
	}
	if _, needed, err := b.Enrol.DraftUnlock(t.Context(), "alice"); err != nil || needed {
		t.Errorf("unlocked already, and needed: %v", err)
	}
	wrong()
	lie := change.Draft{Kind: policy.ClientUnlock, Parameters: change.Parameters{"name": "alice", "client": alice.ID[:], "wrong": uint64(9)}}
	if _, err := b.Requests.Ask(t.Context(), lie); !errors.Is(err, store.ErrConflict) {
		t.Errorf("asked about 9 wrong passwords: %v", err)
	}
	stale := b.Waits(must(b.Enrol.DraftUnlock(t.Context(), "alice")))
	wrong()
	if _, err := b.Requests.Sign(t.Context(), stale.Hash.ID(), b.Ann.Sign(t, stale.Hash)); err == nil {
		t.Error("signed after another wrong password")
	}
}

func must(d change.Draft, _ bool, err error) change.Draft {
	if err != nil {
		panic(err)
	}
	return d
}

// TestReservedRole: no invitation gives the role of phones with a UV key.
func TestReservedRole(t *testing.T) {
	b := appliancetest.New(t)
	if _, err := policy.Parse([]byte("[approval]\nrole = \"" + store.RoleUV + "\"\n[[service]]\nid = 16\nname = \"x\"\nlevel = 1\n")); err == nil {
		t.Error("a policy has it approve for others")
	}
	if _, _, err := b.Enrol.Invite(t.Context(), enrol.Invite{Kind: store.KindClient, Name: "vera", Roles: []string{store.RoleUV}}); !errors.Is(err, parties.ErrInput) {
		t.Errorf("invited: %v", err)
	}
	code := make([]byte, 32)
	if _, err := b.Requests.Ask(t.Context(), change.Draft{Kind: policy.ClientInvite, Parameters: change.Parameters{
		"name": "vera", "roles": []string{store.RoleUV}, "ttl_s": uint64(60), "code_sha256": code,
	}}); !errors.Is(err, parties.ErrInput) {
		t.Errorf("asked: %v", err)
	}
}

// TestGrantsAreNamed: the audit says what an invitation and an enrolment grant.
func TestGrantsAreNamed(t *testing.T) {
	b := appliancetest.New(t)
	code, _, err := b.Enrol.Invite(t.Context(), enrol.Invite{Kind: store.KindClient, Name: "vera", Roles: []string{"approver"}, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Enrol.Client(t.Context(), b.Stranger().Request(code)); err != nil {
		t.Fatal(err)
	}
	replaced, _, err := b.Enrol.Invite(t.Context(), enrol.Invite{Kind: store.KindDevice, Name: "gate", Display: "Blue", Floor: 3, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	b.Clock.Advance(time.Second)
	certificate(b, replaced)
	records, err := b.Store.Records(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]map[string]any{}
	for _, rec := range records {
		if words := rec.Words(); words["event"] == "invited" || words["event"] == "enrolled" {
			said[rec.Subject+" "+words["event"].(string)] = words
		}
	}
	for _, subject := range []string{"client/vera invited", "client/vera enrolled"} {
		if roles, _ := said[subject]["roles"].([]any); !slices.Equal(roles, []any{"approver"}) || said[subject]["change"] == nil {
			t.Errorf("%s: %v", subject, said[subject])
		}
	}
	for _, subject := range []string{"device/gate invited", "device/gate enrolled"} {
		if w := said[subject]; w["floor"] != uint64(3) || w["display"] != "Blue" || w["change"] == nil {
			t.Errorf("%s: %v", subject, w)
		}
	}
	if said["client/vera invited"]["replace"] != true || said["device/gate invited"]["replace"] != true {
		t.Error("a replacement does not say so")
	}
	if actor, _ := said["device/gate enrolled"]["actor"].(map[string]any); actor["role"] != "holder of an activation code" {
		t.Errorf("a device was enrolled by %v", actor)
	}
}

// TestNameIsFreeBeforeTheVote: administrators are not asked to vote on an invitation that the store would
// refuse. To replace the party, or its code, is always possible.
func TestNameIsFreeBeforeTheVote(t *testing.T) {
	for name, occupy := range map[string]func(*appliancetest.Bench, store.Kind){
		"an open code": func(b *appliancetest.Bench, kind store.Kind) { b.Code(kind, "taken") },
		"a party":      enrolled,
		"a revoked party": func(b *appliancetest.Bench, kind store.Kind) {
			enrolled(b, kind)
			if _, err := b.Enrol.Revoke(b.Context(), kind, "taken"); err != nil {
				b.Fatal(err)
			}
		},
	} {
		for _, kind := range []store.Kind{store.KindClient, store.KindDevice} {
			t.Run(name+" of a "+string(kind), func(t *testing.T) {
				b := appliancetest.NewBoard(t, "[quorum]\n")
				occupy(b.Bench, kind)
				b.Executes(rules.Draft(appliancetest.QuorumPolicy(twoToInvite)))
				if _, _, err := b.Enrol.Invite(t.Context(), enrol.Invite{Kind: kind, Name: "taken"}); !errors.Is(err, store.ErrExists) {
					t.Errorf("invited: %v", err)
				}
				c := waiting(b, enrol.Invite{Kind: kind, Name: "taken", Replace: true})
				if c = b.Signed(c, b.Ann.Sign(t, c.Hash)); c.State != store.ChangeExecuted {
					t.Errorf("replaced: %s, %s", c.State, c.Reason)
				}
			})
		}
	}
}

// enrolled enrols a party whose name is taken.
func enrolled(b *appliancetest.Bench, kind store.Kind) {
	b.Helper()
	if kind == store.KindDevice {
		b.EnrolDevice("taken")
	} else {
		b.EnrolPhone("taken")
	}
}

const twoToInvite = "[quorum]\n\"client.invite\" = 2\n\"device.invite\" = 2\n"

// waiting asks for an invitation that waits for another administrator.
func waiting(b *appliancetest.Board, i enrol.Invite) requests.Change {
	b.Helper()
	_, _, err := b.Enrol.Invite(b.Context(), i)
	var w *requests.Waiting
	if !errors.As(err, &w) {
		b.Fatal(err)
	}
	return w.Change
}

// TestOpenCodeMeanwhile: an invitation or a replacement that waits for votes is stale once a code for
// the name is made, replaced or withdrawn.
func TestOpenCodeMeanwhile(t *testing.T) {
	for _, kind := range []store.Kind{store.KindClient, store.KindDevice} {
		b := appliancetest.NewBoard(t, twoToInvite)
		invite, again := enrol.Invite{Kind: kind, Name: "new"}, enrol.Invite{Kind: kind, Name: "new", Replace: true}
		first, second, third := waiting(b, invite), waiting(b, invite), waiting(b, again)
		if first = b.Signed(first, b.Ann.Sign(t, first.Hash)); first.State != store.ChangeExecuted {
			t.Fatal(first.State, first.Reason)
		}
		stale := func(c requests.Change, what string) {
			t.Helper()
			if _, err := b.Requests.Sign(t.Context(), c.Hash.ID(), b.Ann.Sign(t, c.Hash)); !errors.Is(err, requests.ErrOver) {
				t.Errorf("%s of a %s: %v", what, kind, err)
			}
		}
		stale(second, "an invitation beside an open code")
		stale(third, "a replacement of nothing")

		fourth, fifth := waiting(b, again), waiting(b, again)
		if fourth = b.Signed(fourth, b.Ann.Sign(t, fourth.Hash)); fourth.State != store.ChangeExecuted {
			t.Fatal(fourth.State, fourth.Reason)
		}
		stale(fifth, "a replacement of a code that was replaced")
		sixth := waiting(b, again)
		if _, err := b.Enrol.Revoke(t.Context(), kind, "new"); err != nil {
			t.Fatal(err)
		}
		stale(sixth, "a replacement of a code that was withdrawn")
		if c := waiting(b, invite); b.Signed(c, b.Ann.Sign(t, c.Hash)).State != store.ChangeExecuted {
			t.Errorf("the %s cannot be invited again", kind)
		}
	}
}
