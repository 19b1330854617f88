package protocol

import (
	"encoding/json"
	"encoding/pem"
)

// DeviceEnrolRequest is the body of POST /v1/enrol/device, PROTOCOL.md §5:
// {"activation_code", "csr"}. The request's own signature is for the caller.
type DeviceEnrolRequest struct {
	ActivationCode ActivationCode
	CSR            string // PEM, one CERTIFICATE REQUEST
}

// DeviceEnrolResponse answers it: {"certificates": [PEM], "trust"}. The device's own
// certificate comes first.
type DeviceEnrolResponse struct {
	Certificates []string      `json:"certificates"`
	Trust        TrustDocument `json:"trust"`
}

// RenewRequest is the body of POST /v1/renew: {"csr"}.
type RenewRequest struct {
	CSR string `json:"csr"` // PEM, one CERTIFICATE REQUEST
}

// RenewResponse answers it: {"certificates": [PEM]}.
type RenewResponse struct {
	Certificates []string `json:"certificates"`
}

type deviceEnrolJSON struct {
	ActivationCode string `json:"activation_code"`
	CSR            string `json:"csr"`
}

// MarshalJSON writes the body as on the wire.
func (r DeviceEnrolRequest) MarshalJSON() ([]byte, error) {
	return json.Marshal(deviceEnrolJSON{r.ActivationCode.String(), r.CSR})
}

// ParseDeviceEnrolRequest reads a body: CodeFormat.
func ParseDeviceEnrolRequest(body []byte) (r DeviceEnrolRequest, err error) {
	var w deviceEnrolJSON
	if err := strictJSON(body, &w); err != nil {
		return r, err
	}
	if r.ActivationCode, err = ParseActivationCode(w.ActivationCode); err != nil {
		return r, err
	}
	r.CSR = w.CSR
	return r, checkPEM("CERTIFICATE REQUEST", w.CSR)
}

// ParseDeviceEnrolResponse reads an answer: CodeFormat.
func ParseDeviceEnrolResponse(body []byte) (r DeviceEnrolResponse, err error) {
	var w struct {
		Certificates []string        `json:"certificates"`
		Trust        json.RawMessage `json:"trust"`
	}
	if err := strictJSON(body, &w); err != nil {
		return r, err
	}
	if r.Trust, err = ParseTrustDocument(w.Trust); err != nil {
		return r, err
	}
	r.Certificates = w.Certificates
	return r, checkPEM("CERTIFICATE", w.Certificates...)
}

// ParseRenewRequest reads a body: CodeFormat.
func ParseRenewRequest(body []byte) (r RenewRequest, err error) {
	if err := strictJSON(body, &r); err != nil {
		return RenewRequest{}, err
	}
	return r, checkPEM("CERTIFICATE REQUEST", r.CSR)
}

// ParseRenewResponse reads an answer: CodeFormat.
func ParseRenewResponse(body []byte) (r RenewResponse, err error) {
	if err := strictJSON(body, &r); err != nil {
		return RenewResponse{}, err
	}
	return r, checkPEM("CERTIFICATE", r.Certificates...)
}

// checkPEM requires at least one text, each of exactly one block of this type.
func checkPEM(blockType string, texts ...string) error {
	if len(texts) == 0 {
		return formatError("no PEM %s", blockType)
	}
	for _, text := range texts {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != blockType || len(rest) != 0 {
			return formatError("not one PEM %s", blockType)
		}
	}
	return nil
}
