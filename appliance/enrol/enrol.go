// Package enrol invites clients and devices, enrols those that have an activation code, and
// renews the certificates of devices.
package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/change/quorum"
	"countersign/appliance/change/requests"
	"countersign/appliance/keyuse"
	"countersign/appliance/parties"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/trust"
)

// Service enrols clients and devices. It is safe for concurrent use.
type Service struct {
	store    store.Store
	keys     *keyuse.Keys
	parties  *parties.Parties
	judge    *quorum.Judge
	rules    *rules.Rules
	requests *requests.Service
	attest   Attest
	log      hclog.Logger
	now      func() time.Time
	renewals renewals
}

// Config holds what a Service needs.
type Config struct {
	Store    store.Store
	Keys     *keyuse.Keys
	Parties  *parties.Parties
	Judge    *quorum.Judge
	Rules    *rules.Rules
	Requests *requests.Service
	Attest   Attest // nil: attestations are of format "unverified"
	Logger   hclog.Logger
	Now      func() time.Time
}

// New returns a service and registers the effects of invitations, resumptions and unlocking.
func New(c Config) *Service {
	s := &Service{
		store: c.Store, keys: c.Keys, parties: c.Parties, judge: c.Judge, rules: c.Rules, requests: c.Requests,
		attest: c.Attest, log: c.Logger, now: c.Now,
	}
	for _, k := range inviting {
		c.Requests.Register(k.invite, s.invites(k.invite))
		c.Requests.Register(k.replace, s.invites(k.replace))
	}
	c.Requests.Register(policy.ClientResume, requests.Effect{Base: s.resumeClientBase, Do: s.resumeClient})
	c.Requests.Register(policy.DeviceResume, requests.Effect{Base: s.resumeDeviceBase, Do: s.resumeDevice})
	c.Requests.Register(policy.ClientUnlock, requests.Effect{Base: s.unlockBase, Do: s.unlock})
	return s
}

// Attest verifies the attestation of a UV key and returns the name of its format, which the
// policy accepts or not. It returns an error for a format that it does not know.
type Attest func(ctx context.Context, a Attestation) (format string, err error)

// Attestation is a UV key with the bytes that vouch for it.
type Attestation struct {
	Client    protocol.ClientID
	UVKey     protocol.PublicKey
	Statement []byte
}

// ErrTaken: a client with this signing key is enrolled already. The phone has to make a new key
// (PROTOCOL.md §5, HTTP 409).
var ErrTaken = errors.New("this key is enrolled already")

// Trust returns the answer of GET /v1/trust.
func (s *Service) Trust() trust.Document { return s.keys.TrustDocument(s.now()) }

// PasswordLength returns the least length of a new offline password, in characters.
func (s *Service) PasswordLength() int { return s.rules.Active().PasswordLength() }

// Client enrols the phone that holds an activation code, once. body is the request as received; a
// byte-identical repeat gets the same answer. The error for a code that is unknown, used, expired
// or of another kind is [protocol.CodeRefused].
func (s *Service) Client(ctx context.Context, body []byte) ([]byte, error) {
	req, err := enrol.ParseRequest(body)
	if err != nil {
		return nil, err
	}
	invitation, answered, err := s.invitation(ctx, req.ActivationCode, store.KindClient, body)
	if err != nil || answered {
		return invitation.Response, err
	}
	c, err := s.newClient(ctx, req, invitation)
	if err != nil {
		return nil, err
	}
	response, err := s.enrolResponse(c)
	if err != nil {
		return nil, err
	}
	fields := grantOf(invitation, "enrolled")
	fields["roles"] = append([]string{}, c.Roles...) // perhaps one more
	fields["id"], fields["signing_key"] = c.ID[:], c.SigningKey[:]
	rec := parties.Record(audit.By(ctx, audit.Holder), audit.KindClients, c.Name, fields)
	return s.use(ctx, body, response, invitation, func(u store.Use) error { return s.store.EnrolClient(ctx, u, c, rec) })
}

// invitation finds the invitation of an activation code. answered reports that this very request
// used it, so that its stored response is the answer. It verifies the change request behind any
// other invitation.
func (s *Service) invitation(ctx context.Context, code enrol.ActivationCode, kind store.Kind, body []byte) (i store.Invitation, answered bool, err error) {
	i, err = s.store.Invitation(ctx, sha256.Sum256([]byte(code.String())))
	switch {
	case errors.Is(err, store.ErrNotFound), parties.Forged(err):
		return i, false, fmt.Errorf("activation code is unknown: %w", protocol.CodeRefused)
	case err != nil:
		return i, false, err
	case i.Kind != kind:
		return i, false, fmt.Errorf("activation code is for a %s: %w", i.Kind, protocol.CodeRefused)
	case i.SameRequest(sha256.Sum256(body)):
		return i, true, nil
	case !i.UsedAt.IsZero(), s.now().After(i.ExpiresAt):
		return i, false, fmt.Errorf("activation code of %q is used or expired: %w", i.Name, protocol.CodeRefused)
	}
	err = s.judge.Verify(ctx, s.recordOf(i))
	if parties.Forged(err) {
		err = fmt.Errorf("%w: %w", err, protocol.CodeRefused)
	}
	return i, false, err
}

// use stores an enrolment. When two identical requests race, the second gets the answer of the
// first.
func (s *Service) use(ctx context.Context, body, response []byte, i store.Invitation, enrolKey func(store.Use) error) ([]byte, error) {
	u := store.Use{Code: i.Code, At: s.now().UTC(), Request: sha256.Sum256(body), Response: response}
	err := enrolKey(u)
	switch {
	case errors.Is(err, store.ErrUsed):
		if again, findErr := s.store.Invitation(ctx, i.Code); findErr == nil && again.SameRequest(u.Request) {
			return again.Response, nil
		}
		return nil, fmt.Errorf("activation code of %q: %w", i.Name, protocol.CodeRefused)
	case parties.Forged(err):
		return nil, fmt.Errorf("activation code of %q: %w: %w", i.Name, err, protocol.CodeRefused)
	case errors.Is(err, store.ErrExists):
		return nil, fmt.Errorf("enrolling %q: %w", i.Name, ErrTaken)
	case err != nil:
		return nil, fmt.Errorf("enrolling %q: %w", i.Name, err)
	}
	return response, nil
}

// newClient returns the row of an enrolling client, with its roles and its verifier wrapped by
// the token.
func (s *Service) newClient(ctx context.Context, req enrol.Request, i store.Invitation) (store.Client, error) {
	c := store.Client{
		ID: protocol.ClientIDOf(req.SigningKey), Name: i.Name, SigningKey: req.SigningKey, UVKey: req.UVKey,
		Status: store.Active, Roles: slices.Clone(i.Roles), Version: 1, Highest: -1, CreatedAt: s.now().UTC(),
	}
	var err error
	if req.Password != nil {
		if c.Verifier, err = s.importVerifier(ctx, req); err != nil {
			return c, err
		}
	}
	if req.UVKey != nil && s.rules.Active().AcceptsAttestation(s.attestation(ctx, req)) {
		c.Roles = append(c.Roles, store.RoleUV)
	}
	now := s.now()
	c.Cert, err = s.keys.ClientCert(ctx, trust.ClientCert{Client: c.ID, SigningKey: c.SigningKey, UVKey: c.UVKey}, now)
	return c, err
}

// attestation returns the format of a UV key's attestation, as the hook verified it.
func (s *Service) attestation(ctx context.Context, req enrol.Request) string {
	if req.Attestation == nil {
		return policy.NoAttestation
	}
	if s.attest == nil {
		return policy.Unverified
	}
	format, err := s.attest(ctx, Attestation{Client: req.ClientID(), UVKey: *req.UVKey, Statement: req.Attestation})
	if err == nil && (format == policy.NoAttestation || format == policy.Unverified) {
		err = fmt.Errorf("%q is not the name of an attestation format", format)
	}
	if err != nil {
		s.log.Warn("attestation was not accepted", "client", req.ClientID().String(), "error", err)
		return policy.Unverified
	}
	return format
}

func (s *Service) enrolResponse(c store.Client) ([]byte, error) {
	pinned := s.Trust()
	response := enrol.Response{
		Client: c.ID, RootKey: pinned.RootKey, NextRootHash: pinned.NextRootHash, KeyCerts: pinned.KeyCerts, ClientCert: c.Cert,
	}
	response.Floors = s.rules.Active().Floors()
	return json.Marshal(response)
}

// Device enrols the authorization device that holds an activation code, as Client enrols a phone.
// The device gets the invitation's name; the CSR's subject is ignored.
func (s *Service) Device(ctx context.Context, body []byte) ([]byte, error) {
	req, err := enrol.ParseDeviceRequest(body)
	if err != nil {
		return nil, err
	}
	invitation, answered, err := s.invitation(ctx, req.ActivationCode, store.KindDevice, body)
	if err != nil || answered {
		return invitation.Response, err
	}
	public, err := requestKey(req.CSR)
	if err != nil {
		return nil, err
	}
	now := s.now()
	id := s.keys.SPIFFEID("device", invitation.Name)
	d := store.Device{
		ID: protocol.DeviceIDOf(id.String()), Name: invitation.Name, SPIFFEID: id.String(), Display: invitation.Display,
		Floor: invitation.Floor, Status: store.Active, Version: 1, CreatedAt: now.UTC(),
	}
	certificates, err := s.deviceCertificates(ctx, d, public, now)
	if err != nil {
		return nil, err
	}
	response, err := json.Marshal(enrol.DeviceResponse{Certificates: certificates, Trust: s.keys.TrustDocument(now)})
	if err != nil {
		return nil, err
	}
	fields := grantOf(invitation, "enrolled")
	fields["id"], fields["spiffe_id"] = d.ID[:], d.SPIFFEID
	rec := parties.Record(audit.By(ctx, audit.Holder), audit.KindDevices, d.Name, fields)
	defer s.parties.Forget(d.SPIFFEID)
	return s.use(ctx, body, response, invitation, func(u store.Use) error { return s.store.EnrolDevice(ctx, u, d, rec) })
}

// Renew returns a new certificate for the key of a device's CSR. A device that asks too often gets
// [protocol.CodeBusy] with the time to wait, as [protocol.Retry].
func (s *Service) Renew(ctx context.Context, device store.Device, req enrol.RenewRequest) (enrol.RenewResponse, error) {
	public, err := requestKey(req.CSR)
	if err != nil {
		return enrol.RenewResponse{}, err
	}
	now := s.now()
	issuer, err := s.keys.Issuer(ctx, now)
	if err != nil {
		return enrol.RenewResponse{}, err
	}
	who := renewedBy(device.ID, issuer)
	if wait := s.renewals.begin(who, now); wait > 0 {
		return enrol.RenewResponse{}, fmt.Errorf("device %q was renewed %d times within an hour: %w",
			device.Name, renewalsPerHour, protocol.Retry{Code: protocol.CodeBusy, After: wait})
	}
	answer, err := s.renew(ctx, device, public, now)
	if err != nil {
		s.renewals.undo(who)
	}
	return answer, err
}

func (s *Service) renew(
	ctx context.Context, device store.Device, public *ecdsa.PublicKey, now time.Time,
) (enrol.RenewResponse, error) {
	certificates, err := s.deviceCertificates(ctx, device, public, now)
	if err != nil {
		return enrol.RenewResponse{}, err
	}
	fields := map[string]any{"event": "renewed", "id": device.ID[:]}
	rec := parties.Record(audit.By(ctx, audit.Device), audit.KindDevices, device.Name, fields)
	if err := s.store.Append(ctx, rec); err != nil {
		return enrol.RenewResponse{}, fmt.Errorf("renewing %q: %w", device.Name, err)
	}
	return enrol.RenewResponse{Certificates: certificates}, nil
}

// deviceCertificates returns the device's new certificate and its issuer's, PEM.
func (s *Service) deviceCertificates(ctx context.Context, d store.Device, public *ecdsa.PublicKey, now time.Time) ([]string, error) {
	cert, err := s.keys.DeviceCert(ctx, public, s.keys.SPIFFEID("device", d.Name), now)
	if err != nil {
		return nil, err
	}
	issuer, err := s.keys.Issuer(ctx, now)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range []*x509.Certificate{cert, issuer} {
		out = append(out, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
	}
	return out, nil
}

// requestKey checks a PKCS#10 request and returns its P-256 key.
func requestKey(csr string) (*ecdsa.PublicKey, error) {
	block, rest := pem.Decode([]byte(csr))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 {
		return nil, fmt.Errorf("csr is not one PEM certificate request: %w", protocol.CodeFormat)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("csr: %v: %w", err, protocol.CodeFormat)
	}
	public, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("csr is not for an ECDSA key: %w", protocol.CodeFormat)
	}
	if _, err := protocol.CompressKey(public); err != nil {
		return nil, fmt.Errorf("csr: %w", err)
	}
	// Only now: verifying a signature under a key of another kind can take seconds.
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("csr: %v: %w", err, protocol.CodeFormat)
	}
	return public, nil
}

// importVerifier imports the password of an enrolment into the token.
func (s *Service) importVerifier(ctx context.Context, req enrol.Request) ([]byte, error) {
	p := req.Password
	ephemeral, err := p.Ephemeral.ECDH()
	if err != nil {
		return nil, fmt.Errorf("password.ephemeral: %w", err)
	}
	wrapped, err := s.keys.ImportVerifier(ctx, keyuse.VerifierImport{
		Ephemeral: ephemeral, Point: p.Ephemeral, SigningKey: req.SigningKey, Wrapped: p.Wrapped[:],
	}, s.now())
	if errors.Is(err, hsm.ErrInput) {
		return nil, fmt.Errorf("password.wrapped does not unwrap: %w", protocol.CodeFormat)
	}
	if errors.Is(err, hsm.ErrUnsupported) {
		return nil, fmt.Errorf("an enrolment with a password, and %v: %w", err, protocol.CodeLevel)
	}
	return wrapped, err
}
