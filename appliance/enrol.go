package appliance

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

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/trust"
)

// ErrTaken: a client with this signing key is enrolled already; the phone makes a
// new key (PROTOCOL.md §5, HTTP 409).
var ErrTaken = errors.New("this key is enrolled already")

// Trust is the answer of GET /v1/trust.
func (a *Appliance) Trust() trust.Document { return a.keys.TrustDocument(a.now()) }

// Enrol enrols the phone that holds an activation code, once. body is the request
// as received: a byte-identical repeat gets the same answer. A code that is
// unknown, used, expired or of another kind is [protocol.CodeRefused].
func (a *Appliance) Enrol(ctx context.Context, body []byte) ([]byte, error) {
	req, err := enrol.ParseRequest(body)
	if err != nil {
		return nil, err
	}
	invitation, answered, err := a.invitation(ctx, req.ActivationCode, store.KindClient, body)
	if err != nil || answered {
		return invitation.Response, err
	}
	c, err := a.newClient(ctx, req, invitation)
	if err != nil {
		return nil, err
	}
	response, err := a.enrolResponse(c)
	if err != nil {
		return nil, err
	}
	rec := a.record(audit.KindClients, c.Name, map[string]any{"event": "enrolled", "id": c.ID[:], "signing_key": c.SigningKey[:]})
	return a.use(ctx, body, response, invitation, func(u store.Use) error { return a.store.EnrolClient(ctx, u, c, rec) })
}

// invitation finds the invitation of a code. answered tells that this very request
// used it, so that its stored response is the answer.
func (a *Appliance) invitation(ctx context.Context, code enrol.ActivationCode, kind store.Kind, body []byte) (i store.Invitation, answered bool, err error) {
	i, err = a.store.Invitation(ctx, sha256.Sum256([]byte(code.String())))
	switch {
	case errors.Is(err, store.ErrNotFound), isForged(err):
		return i, false, fmt.Errorf("activation code is unknown: %w", protocol.CodeRefused)
	case err != nil:
		return i, false, err
	case i.Kind != kind:
		return i, false, fmt.Errorf("activation code is for a %s: %w", i.Kind, protocol.CodeRefused)
	case i.SameRequest(sha256.Sum256(body)):
		return i, true, nil
	case !i.UsedAt.IsZero(), a.now().After(i.ExpiresAt):
		return i, false, fmt.Errorf("activation code of %q is used or expired: %w", i.Name, protocol.CodeRefused)
	}
	return i, false, nil
}

// use stores an enrolment. When two identical requests race, the one that comes
// second gets the answer of the first.
func (a *Appliance) use(ctx context.Context, body, response []byte, i store.Invitation, enrolKey func(store.Use) error) ([]byte, error) {
	u := store.Use{Code: i.Code, At: a.now().UTC(), Request: sha256.Sum256(body), Response: response}
	err := enrolKey(u)
	switch {
	case errors.Is(err, store.ErrUsed):
		if again, findErr := a.store.Invitation(ctx, i.Code); findErr == nil && again.SameRequest(u.Request) {
			return again.Response, nil
		}
		return nil, fmt.Errorf("activation code of %q: %w", i.Name, protocol.CodeRefused)
	case isForged(err):
		return nil, fmt.Errorf("activation code of %q: %w: %w", i.Name, err, protocol.CodeRefused)
	case errors.Is(err, store.ErrExists):
		return nil, fmt.Errorf("enrolling %q: %w", i.Name, ErrTaken)
	case err != nil:
		return nil, fmt.Errorf("enrolling %q: %w", i.Name, err)
	}
	return response, nil
}

// newClient is the row of an enrolling client, with its verifier in the token's
// custody and its roles settled.
func (a *Appliance) newClient(ctx context.Context, req enrol.Request, i store.Invitation) (store.Client, error) {
	c := store.Client{
		ID: protocol.ClientIDOf(req.SigningKey), Name: i.Name, SigningKey: req.SigningKey, UVKey: req.UVKey,
		Status: store.Active, Roles: slices.Clone(i.Roles), Version: 1, Highest: -1, CreatedAt: a.now().UTC(),
	}
	var err error
	if req.Password != nil {
		if c.Verifier, err = a.importVerifier(ctx, req); err != nil {
			return c, err
		}
	}
	if req.UVKey != nil && a.policy.Load().AcceptsAttestation(a.attestation(ctx, req)) {
		c.Roles = append(c.Roles, RoleUV)
	}
	now := a.now()
	c.Cert, err = a.keys.ClientCert(ctx, trust.ClientCert{Client: c.ID, SigningKey: c.SigningKey, UVKey: c.UVKey}, now)
	return c, err
}

// unverified is the format of attestation bytes that nobody here can read.
const unverified = "unverified"

// attestation names the format of a UV key's attestation, as the hook verified it.
func (a *Appliance) attestation(ctx context.Context, req enrol.Request) string {
	if req.Attestation == nil {
		return policy.NoAttestation
	}
	if a.attest == nil {
		return unverified
	}
	format, err := a.attest(ctx, Attestation{Client: req.ClientID(), UVKey: *req.UVKey, Statement: req.Attestation})
	if err != nil {
		a.log.Warn("attestation was not accepted", "client", req.ClientID().String(), "error", err)
		return unverified
	}
	return format
}

func (a *Appliance) enrolResponse(c store.Client) ([]byte, error) {
	pinned := a.Trust()
	response := enrol.Response{
		Client: c.ID, RootKey: pinned.RootKey, NextRootHash: pinned.NextRootHash, KeyCerts: pinned.KeyCerts, ClientCert: c.Cert,
	}
	response.Floors = a.policy.Load().Floors()
	return json.Marshal(response)
}

// EnrolDevice enrols the authorization device that holds an activation code, as
// Enrol does a phone. The device's name is the invitation's, whatever the CSR
// says.
func (a *Appliance) EnrolDevice(ctx context.Context, body []byte) ([]byte, error) {
	req, err := enrol.ParseDeviceRequest(body)
	if err != nil {
		return nil, err
	}
	invitation, answered, err := a.invitation(ctx, req.ActivationCode, store.KindDevice, body)
	if err != nil || answered {
		return invitation.Response, err
	}
	if err := a.askedFor(ctx, behindInvitation(invitation)); errors.Is(err, ErrForged) {
		return nil, fmt.Errorf("%w: %w", err, protocol.CodeRefused)
	} else if err != nil {
		return nil, err
	}
	public, err := requestKey(req.CSR)
	if err != nil {
		return nil, err
	}
	now := a.now()
	id := a.keys.SPIFFEID("device", invitation.Name)
	d := store.Device{
		ID: protocol.DeviceIDOf(id.String()), Name: invitation.Name, SPIFFEID: id.String(), Display: invitation.Display,
		Floor: invitation.Floor, Status: store.Active, Version: 1, CreatedAt: now.UTC(),
	}
	certificates, err := a.deviceCertificates(ctx, d, public, now)
	if err != nil {
		return nil, err
	}
	response, err := json.Marshal(enrol.DeviceResponse{Certificates: certificates, Trust: a.keys.TrustDocument(now)})
	if err != nil {
		return nil, err
	}
	rec := a.record(audit.KindDevices, d.Name, map[string]any{"event": "enrolled", "id": d.ID[:], "spiffe_id": d.SPIFFEID})
	defer a.devices.forget(d.SPIFFEID)
	return a.use(ctx, body, response, invitation, func(u store.Use) error { return a.store.EnrolDevice(ctx, u, d, rec) })
}

// Renew gives a device a new certificate for the key of its CSR.
func (a *Appliance) Renew(ctx context.Context, device store.Device, req enrol.RenewRequest) (enrol.RenewResponse, error) {
	public, err := requestKey(req.CSR)
	if err != nil {
		return enrol.RenewResponse{}, err
	}
	certificates, err := a.deviceCertificates(ctx, device, public, a.now())
	if err != nil {
		return enrol.RenewResponse{}, err
	}
	rec := a.record(audit.KindDevices, device.Name, map[string]any{"event": "renewed"})
	if err := a.store.Append(ctx, rec); err != nil {
		return enrol.RenewResponse{}, fmt.Errorf("renewing %q: %w", device.Name, err)
	}
	return enrol.RenewResponse{Certificates: certificates}, nil
}

// deviceCertificates are the device's new certificate and its issuer's, PEM.
func (a *Appliance) deviceCertificates(ctx context.Context, d store.Device, public *ecdsa.PublicKey, now time.Time) ([]string, error) {
	cert, err := a.keys.DeviceCert(ctx, public, a.keys.SPIFFEID("device", d.Name), now)
	if err != nil {
		return nil, err
	}
	issuer, err := a.keys.Issuer(ctx, now)
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
	// Only now: a signature under a key of another kind can cost seconds.
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("csr: %v: %w", err, protocol.CodeFormat)
	}
	return public, nil
}
