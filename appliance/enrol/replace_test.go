package enrol_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/enrol"
	"countersign/appliance/parties"
	"countersign/appliance/store"
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
