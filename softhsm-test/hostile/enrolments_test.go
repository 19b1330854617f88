package hostile

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"countersign/appliance/enrol"
	"countersign/appliance/store"
	"countersign/protocol"
	protoenrol "countersign/protocol/enrol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/hostile/world"
)

// enrolments are codes of each kind and state, certificates that are renewed, and what a
// new phone is told to trust.
var enrolments = []operation{
	{"enrol by an open code", enrolClient("nora"), []grant{{what: `client certificate for code "nora"`}, {what: `"nora" enrolled nora, roles uv`}}},
	{"enrol by a used code", enrolClient("used by rob"), nil},
	{"enrol by an expired code", enrolClient("late"), nil},
	{"enrol by a made-up code", enrolClient("made up"), nil},
	{"enrol by a device's code", enrolClient("till"), nil},
	{"enrol a device by an open code", enrolDevice("till"), []grant{{what: `device by "till": X.509 certificate of spiffe://test.example/device/till`}, {"device by \"till\" is till, shown as \"till\"", 1}}},
	{"enrol a device by a used code", enrolDevice("used by gate"), nil},
	{"enrol a device by a code not voted for", enrolDevice("door-3"), nil},
	{"enrol a device by a made-up code", enrolDevice("made up"), nil},
	{"renew the gate's certificate", renew("gate"), []grant{{what: "renewal: X.509 certificate of spiffe://test.example/device/gate"}}},
	{"renew revoked shed's certificate", renew("shed"), nil},
	{"trust document", func(s *scene, _ context.Context) error { return s.believed() }, trusted},
	{"invite a phone", inviteClient, append([]grant{{what: `"new" enrolled new, roles uv`}, {what: `client certificate for code "new"`}}, trusted...)},
}

// trusted holds the keys that are trusted in the untouched world: each key that may be in use or
// come into use.
var trusted = func() (all []grant) {
	for _, k := range []string{"kem@2", "kem@3", "kem@4", "kem@5", "decision@1", "decision@2", "decision@3", "decision@4", "decision@5", "ca@1", "ca@2", "ca@3", "ca@4", "enrol@1", "enrol@2", "enrol@3", "enrol@4", "client-ca@1", "client-ca@2", "client-ca@3", "client-ca@4"} {
		all = append(all, grant{what: "key " + k})
	}
	return all
}()

func enrolClient(name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error { return s.enrol(ctx, name, s.Codes[name]) }
}

func (s *scene) enrol(ctx context.Context, name string, code protoenrol.ActivationCode) error {
	p := s.Stranger(true)
	got, err := s.EnrolPhone(ctx, p, code)
	if err != nil {
		return err
	}
	s.enrolled(name, got.ClientCert)
	if got.RootKey != s.Root {
		s.grant("root %s is given to a new phone", got.RootKey)
	}
	all, err := s.Parties.Clients(ctx)
	for _, c := range all {
		if c.ID == p.ID {
			s.grant("%q enrolled %s, roles %s", name, c.Name, strings.Join(c.Roles, "+"))
		}
	}
	return err
}

func enrolDevice(name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		raw, err := s.Enrol.Device(ctx, world.DeviceRequest(s.Codes[name]))
		if err != nil {
			return err
		}
		got, err := protoenrol.ParseDeviceResponse(raw)
		if err != nil {
			return err
		}
		who := fmt.Sprintf("device by %q", name)
		s.certified(who, got.Certificates)
		all, err := s.Parties.Devices(ctx)
		for _, d := range all {
			if d.SPIFFEID != "" && strings.Contains(fmt.Sprint(s.grants), d.SPIFFEID) {
				s.grants = append(s.grants, grant{fmt.Sprintf("%s is %s, shown as %q", who, d.Name, d.Display), uint64(d.Floor)})
			}
		}
		return err
	}
}

// renew asks for a certificate as the API does: for the device that a certificate names.
func renew(name string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		d, err := s.Parties.Device(ctx, "spiffe://"+world.Domain+"/device/"+name)
		if err != nil {
			return err
		}
		got, err := s.Enrol.Renew(ctx, d, protoenrol.RenewRequest{CSR: world.CSR()})
		s.certified("renewal", got.Certificates)
		return err
	}
}

// believed judges what the house has new phones and devices believe.
func (s *scene) believed() error {
	document := s.House.Enrol.Trust()
	if document.RootKey == (protocol.PublicKey{}) {
		return errors.New("no root") // its key is unknown
	}
	if _, err := s.Verify(s.Hash()); err != nil {
		s.grant("root %s, to which the true root does not lead", document.RootKey)
	}
	for _, raw := range document.KeyCerts {
		cert, err := trust.VerifyKeyCert(raw, s.Root)
		if err != nil {
			s.grant("a key that the true root did not certify")
			continue
		}
		s.grant("key %s@%d", cert.Use, cert.Epoch)
	}
	return nil
}

// inviteClient invites a phone, which pins the root that its code names, and enrols it.
func inviteClient(s *scene, ctx context.Context) error {
	code, _, err := s.Enrol.Invite(ctx, enrol.Invite{Kind: store.KindClient, Name: "new"})
	if err != nil {
		return err
	}
	if code.Root != s.Hash() && code.Root != (protocol.PublicKey{}).RootHash() {
		s.grant("a code that pins another root")
	}
	return errors.Join(s.enrol(ctx, "new", code), s.believed())
}
