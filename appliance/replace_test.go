package appliance_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/protocol/enrol"
)

func (b *bench) replace(i appliance.Invite) enrol.ActivationCode {
	b.Helper()
	i.Replace = true
	code, _, err := b.Invite(b.Context(), i)
	if err != nil {
		b.Fatal(err)
	}
	return code
}

func TestLostPhone(t *testing.T) {
	b := newBench(t)
	lost, found := b.enrol("alice"), b.stranger()
	begun := lost.challenge(door, nil)
	withdrawn := b.replace(appliance.Invite{Kind: store.KindClient, Name: "alice"})
	if a := begun.must(begun.m3(protocol.Approve)); a.p4.Reason != protocol.CodeRefused {
		t.Errorf("the lost phone: code %d, want 4", a.p4.Reason)
	}
	if _, err := b.Enrol(b.Context(), lost.request(withdrawn)); !errors.Is(err, appliance.ErrTaken) {
		t.Errorf("the lost phone's key again: %v, want taken", err)
	}
	// The first code went astray too.
	code := b.replace(appliance.Invite{Kind: store.KindClient, Name: "alice", Roles: []string{"guest"}})
	if _, err := b.Enrol(b.Context(), b.stranger().request(withdrawn)); !errors.Is(err, protocol.CodeRefused) {
		t.Errorf("withdrawn code: %v, want code 4", err)
	}
	found.name = "alice"
	if _, err := b.Enrol(b.Context(), found.request(code)); err != nil {
		t.Fatal(err)
	}
	s := found.challenge(door, nil)
	if a := s.must(s.m3(protocol.Approve)); a.p4.Result != protocol.ResultApproved {
		t.Errorf("the new phone: %s, code %d", a.p4.Result, a.p4.Reason)
	}
	s = lost.challenge(door, nil)
	if a := s.must(s.m3(protocol.Approve)); a.p4.Reason != protocol.CodeRefused {
		t.Errorf("the lost phone afterwards: code %d, want 4", a.p4.Reason)
	}
	checkNames(t, b, found, lost)
}

// checkNames requires that the new phone has the name, and that the lost one stays
// revoked under another.
func checkNames(t *testing.T, b *bench, found, lost *phone) {
	t.Helper()
	if c, err := b.ClientNamed(t.Context(), "alice"); err != nil || c.ID != found.id || c.Version != 1 || c.Status != store.Active {
		t.Errorf("alice is %+v, %v", c, err)
	}
	retired := "alice~" + lost.id.String()[:8]
	if c, err := b.ClientNamed(t.Context(), retired); err != nil || c.ID != lost.id || c.Status != store.Revoked {
		t.Errorf("%s is %+v, %v", retired, c, err)
	}
	if _, err := b.SetClientStatus(t.Context(), retired, store.Active); !errors.Is(err, appliance.ErrFinal) {
		t.Errorf("resuming the lost phone: %v, want final", err)
	}
}

func TestReplaceRefused(t *testing.T) {
	b := newBench(t)
	b.enrol("alice")
	for name, i := range map[string]appliance.Invite{
		"without replace": {Kind: store.KindClient, Name: "alice"},
		"bad role":        {Kind: store.KindClient, Name: "alice", Roles: []string{"No Role"}, Replace: true},
		"retired name":    {Kind: store.KindClient, Name: "alice~01234567", Replace: true},
	} {
		if _, _, err := b.Invite(t.Context(), i); !errors.Is(err, appliance.ErrInput) && !errors.Is(err, store.ErrExists) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := b.ClientNamed(t.Context(), "alice"); err != nil || c.Status != store.Active {
		t.Errorf("after invitations that were refused alice is %s, %v", c.Status, err)
	}
	b.replace(appliance.Invite{Kind: store.KindClient, Name: "nobody"}) // nobody to revoke
}

// certificate enrols a device and returns its certificate.
func (b *bench) certificate(code enrol.ActivationCode) *x509.Certificate {
	b.Helper()
	body, err := json.Marshal(enrol.DeviceRequest{ActivationCode: code, CSR: newCSR(b.T)})
	if err != nil {
		b.Fatal(err)
	}
	response, err := b.EnrolDevice(b.Context(), body)
	if err != nil {
		b.Fatal(err)
	}
	var enrolled enrol.DeviceResponse
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

// The certificate of the stolen device has not expired and names the same SPIFFE
// ID as that of the new one.
func TestStolenDevice(t *testing.T) {
	b := newBench(t)
	stolen := b.certificate(b.invite(store.KindDevice, "till"))
	first, err := b.DeviceOf(t.Context(), stolen)
	if err != nil {
		t.Fatal(err)
	}
	b.clock.advance(time.Minute)
	code := b.replace(appliance.Invite{Kind: store.KindDevice, Name: "till", Display: "New till", Floor: 2})
	if _, err := b.DeviceOf(t.Context(), stolen); !errors.Is(err, protocol.CodeDevice) {
		t.Errorf("stolen device: %v, want code 15", err)
	}
	fresh := b.certificate(code)
	second, err := b.DeviceOf(t.Context(), fresh)
	if err != nil {
		t.Fatal(err)
	}
	if second.ID != first.ID || second.Display != "New till" || second.Floor != 2 || second.Version != 3 {
		t.Errorf("the new device is %+v", second)
	}
	if _, err := b.DeviceOf(t.Context(), stolen); !errors.Is(err, protocol.CodeDevice) {
		t.Errorf("stolen device after the new one was enrolled: %v, want code 15", err)
	}
	fresh.URIs = nil
	if _, err := b.DeviceOf(t.Context(), fresh); !errors.Is(err, protocol.CodeDevice) {
		t.Errorf("certificate of nobody: %v, want code 15", err)
	}
}
