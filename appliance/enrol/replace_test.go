package enrol_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/change"
	"countersign/appliance/enrol"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
	protocolenrol "countersign/protocol/enrol"
)

func replace(b *appliancetest.Bench, i enrol.Invite) protocolenrol.ActivationCode {
	b.Helper()
	i.Replace = true
	code, _, err := b.Enrol.Invite(b.Context(), i)
	if err != nil {
		b.Fatal(err)
	}
	return code
}

func TestLostPhone(t *testing.T) {
	b := appliancetest.New(t)
	lost, found := b.EnrolPhone("alice"), b.Stranger()
	begun := lost.Challenge(appliancetest.Door, nil)
	withdrawn := replace(b, enrol.Invite{Kind: store.KindClient, Name: "alice"})
	if a := begun.Must(begun.M3(protocol.Approve)); a.P4.Reason != protocol.CodeRefused {
		t.Errorf("the lost phone: code %d, want 4", a.P4.Reason)
	}
	if _, err := b.Enrol.Client(b.Context(), lost.Request(withdrawn)); !errors.Is(err, enrol.ErrTaken) {
		t.Errorf("the lost phone's key again: %v, want taken", err)
	}
	// The first code was lost too.
	code := replace(b, enrol.Invite{Kind: store.KindClient, Name: "alice", Roles: []string{"guest"}})
	if _, err := b.Enrol.Client(b.Context(), b.Stranger().Request(withdrawn)); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("withdrawn code: %v, want code 4", err)
	}
	found.Name = "alice"
	if _, err := b.Enrol.Client(b.Context(), found.Request(code)); err != nil {
		t.Fatal(err)
	}
	s := found.Challenge(appliancetest.Door, nil)
	if a := s.Must(s.M3(protocol.Approve)); a.P4.Result != protocol.ResultApproved {
		t.Errorf("the new phone: %s, code %d", a.P4.Result, a.P4.Reason)
	}
	s = lost.Challenge(appliancetest.Door, nil)
	if a := s.Must(s.M3(protocol.Approve)); a.P4.Reason != protocol.CodeRefused {
		t.Errorf("the lost phone afterwards: code %d, want 4", a.P4.Reason)
	}
	checkNames(t, b, found, lost)
}

// checkNames requires that the new phone has the name, and that the lost one is still revoked
// under another.
func checkNames(t *testing.T, b *appliancetest.Bench, found, lost *appliancetest.Phone) {
	t.Helper()
	if c, err := b.Parties.ClientNamed(t.Context(), "alice"); err != nil || c.ID != found.ID || c.Version != 1 || c.Status != store.Active {
		t.Errorf("alice is %+v, %v", c, err)
	}
	retired := "alice~" + lost.ID.String()[:8]
	if c, err := b.Parties.ClientNamed(t.Context(), retired); err != nil || c.ID != lost.ID || c.Status != store.Revoked {
		t.Errorf("%s is %+v, %v", retired, c, err)
	}
	if _, err := b.Parties.SetClientStatus(t.Context(), retired, store.Active); !errors.Is(err, parties.ErrFinal) {
		t.Errorf("resuming the lost phone: %v, want final", err)
	}
}

func TestReplaceRefused(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolPhone("alice")
	for name, i := range map[string]enrol.Invite{
		"without replace": {Kind: store.KindClient, Name: "alice"},
		"bad role":        {Kind: store.KindClient, Name: "alice", Roles: []string{"No Role"}, Replace: true},
		"retired name":    {Kind: store.KindClient, Name: "alice~01234567", Replace: true},
	} {
		if _, _, err := b.Enrol.Invite(t.Context(), i); !errors.Is(err, parties.ErrInput) && !errors.Is(err, store.ErrExists) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := b.Parties.ClientNamed(t.Context(), "alice"); err != nil || c.Status != store.Active {
		t.Errorf("after invitations that were refused alice is %s, %v", c.Status, err)
	}
	replace(b, enrol.Invite{Kind: store.KindClient, Name: "nobody"}) // there is no such party to revoke
}

// certificate enrols a device and returns its certificate.
func certificate(b *appliancetest.Bench, code protocolenrol.ActivationCode) *x509.Certificate {
	b.Helper()
	body, err := json.Marshal(protocolenrol.DeviceRequest{ActivationCode: code, CSR: appliancetest.NewCSR(b.T)})
	if err != nil {
		b.Fatal(err)
	}
	response, err := b.Enrol.Device(b.Context(), body)
	if err != nil {
		b.Fatal(err)
	}
	var enrolled protocolenrol.DeviceResponse
	if err := json.Unmarshal(response, &enrolled); err != nil {
		b.Fatal(err)
	}
	block, _ := pem.Decode([]byte(enrolled.Certificates[0]))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		b.Fatal(err)
	}
	return cert
}

// TestStolenDevice: the certificate of a stolen device has not expired and names the same SPIFFE
// ID as the new device's certificate. It is refused.
func TestStolenDevice(t *testing.T) {
	b := appliancetest.New(t)
	stolen := certificate(b, b.Code(store.KindDevice, "till"))
	first, err := b.Parties.DeviceOf(t.Context(), stolen)
	if err != nil {
		t.Fatal(err)
	}
	b.Clock.Advance(time.Minute)
	code := replace(b, enrol.Invite{Kind: store.KindDevice, Name: "till", Display: "New till", Floor: 2})
	if _, err := b.Parties.DeviceOf(t.Context(), stolen); !errors.Is(err, protocol.CodeDevice) {
		t.Errorf("stolen device: %v, want code 15", err)
	}
	fresh := certificate(b, code)
	second, err := b.Parties.DeviceOf(t.Context(), fresh)
	if err != nil {
		t.Fatal(err)
	}
	if second.ID != first.ID || second.Display != "New till" || second.Floor != 2 || second.Version != 3 {
		t.Errorf("the new device is %+v", second)
	}
	if _, err := b.Parties.DeviceOf(t.Context(), stolen); !errors.Is(err, protocol.CodeDevice) {
		t.Errorf("stolen device after the new one was enrolled: %v, want code 15", err)
	}
	fresh.URIs = nil
	if _, err := b.Parties.DeviceOf(t.Context(), fresh); !errors.Is(err, protocol.CodeDevice) {
		t.Errorf("certificate of nobody: %v, want code 15", err)
	}
}

// TestReplaceKeeps: what an invitation does not name, a replacement takes over from the party or from the open code of
// that name. Its request says what was there.
func TestReplaceKeeps(t *testing.T) {
	b := appliancetest.New(t)
	code, _, err := b.Enrol.Invite(t.Context(), enrol.Invite{Kind: store.KindClient, Name: "vera", Roles: []string{"approver", "night"}})
	if err != nil {
		t.Fatal(err)
	}
	phone := b.Stranger()
	if _, err := b.Enrol.Client(t.Context(), phone.Request(code)); err != nil {
		t.Fatal(err)
	}
	preview := func(i enrol.Invite) change.Parameters {
		t.Helper()
		i.Replace = true
		c, err := b.Enrol.PreviewInvite(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		return c.Parameters
	}
	p := preview(enrol.Invite{Kind: store.KindClient, Name: "vera"})
	if !slices.Equal(p.Texts("roles"), []string{"approver", "night"}) || !slices.Equal(p.Texts("was_roles"), []string{"approver", "night"}) {
		t.Errorf("replacing vera: %v", p)
	}
	p = preview(enrol.Invite{Kind: store.KindClient, Name: "vera", Roles: []string{}})
	if len(p.Texts("roles")) != 0 || len(p.Texts("was_roles")) != 2 {
		t.Errorf("replacing vera without a role: %v", p)
	}
	replace(b, enrol.Invite{Kind: store.KindClient, Name: "vera", Roles: []string{"guest"}})
	p = preview(enrol.Invite{Kind: store.KindClient, Name: "vera"})
	if !slices.Equal(p.Texts("roles"), []string{"guest"}) || !slices.Equal(p.Texts("was_roles"), []string{"guest"}) {
		t.Errorf("replacing the open code for vera: %v", p)
	}
	if p = preview(enrol.Invite{Kind: store.KindClient, Name: "new"}); p["was_roles"] != nil {
		t.Errorf("replacing a client that there is not: %v", p)
	}
	certificate(b, b.Code(store.KindDevice, "till"))
	p = preview(enrol.Invite{Kind: store.KindDevice, Name: "till", Floor: 3})
	if p.Text("display") != "till" || p.Text("was_display") != "till" || p.Number("floor") != 3 || p.Number("was_floor") != 1 {
		t.Errorf("replacing till: %v", p)
	}
	certificate(b, replace(b, enrol.Invite{Kind: store.KindDevice, Name: "till", Display: "Blue till", Floor: 2}))
	certificate(b, replace(b, enrol.Invite{Kind: store.KindDevice, Name: "till"}))
	if d, err := b.Parties.DeviceNamed(t.Context(), "till"); err != nil || d.Display != "Blue till" || d.Floor != 2 {
		t.Errorf("till is %+v: %v", d, err)
	}
}

// TestReplaceKeepsNoUV: the role that an attestation gave belongs to the old phone's key.
func TestReplaceKeepsNoUV(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolFull("alice")
	c, err := b.Enrol.PreviewInvite(t.Context(), enrol.Invite{Kind: store.KindClient, Name: "alice", Replace: true})
	if err != nil || slices.Contains(c.Parameters.Texts("roles"), store.RoleUV) {
		t.Errorf("%v: %v", c.Parameters, err)
	}
}

// TestReplaceSaysWhatWas: a request is refused if its document says something else about what it replaces.
func TestReplaceSaysWhatWas(t *testing.T) {
	b := appliancetest.New(t)
	certificate(b, b.Code(store.KindDevice, "till"))
	for name, p := range map[string]change.Parameters{
		"another display": {"was_display": "gate", "was_floor": uint64(1)},
		"another floor":   {"was_display": "till", "was_floor": uint64(2)},
		"of no device":    {"name": "gate", "was_display": "till", "was_floor": uint64(1)},
	} {
		d := appliancetest.Invitation("till")
		d.Kind = policy.DeviceReplace
		delete(d.Parameters, "replace")
		maps.Copy(d.Parameters, p)
		if _, err := b.Requests.Preview(t.Context(), d); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReplaceKeepsNothingForged: a role that a writer of the database gave a client is not kept.
func TestReplaceKeepsNothingForged(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolPhone("alice")
	b.Tamper(1, `UPDATE client SET roles = 'approver' WHERE name = 'alice'`)
	b.Forgeries(func() {
		c, err := b.Enrol.PreviewInvite(t.Context(), enrol.Invite{Kind: store.KindClient, Name: "alice", Replace: true})
		if !errors.Is(err, store.ErrForged) {
			t.Errorf("%v: %v", c.Parameters, err)
		}
	})
}
