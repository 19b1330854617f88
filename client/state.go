package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"countersign/client/internal/kept"
	"countersign/internal/durable"
	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/trust"

	"countersign/internal/secret"
)

const (
	stateFile    = "state.json"
	stateVersion = 1
)

// state is the data that must change together, in one file that is replaced as a whole:
//
//	{"version": 1,
//	 "counter": the last counter that a serial has or may have used,
//	 "names": {"<service>": "the user's own name"},
//	 "enrolling": {"body": request as sent or about to be sent, ?"password"},
//	 "enrolment": {"url", "signing_key", ?"uv_key", ?"password": kept.Password, "client_cert", "floors", "at"},
//	 "trust": trust.State,
//	 "session": see session}
//
// Binary members are base64url without padding.
type state struct {
	Version   int                         `json:"version"`
	Counter   uint32                      `json:"counter"`
	Names     map[protocol.Service]string `json:"names,omitempty"`
	Enrolling *enrolling                  `json:"enrolling,omitempty"`
	Enrolment *enrolment                  `json:"enrolment,omitempty"`
	Trust     *trust.State                `json:"trust,omitempty"`
	Session   *session                    `json:"session,omitempty"`
}

// enrolling is an unanswered request. The client keeps it because only a byte-identical repeat gets
// the answer again.
type enrolling struct {
	Body     protocol.Base64 `json:"body"`
	Password *kept.Password  `json:"password,omitempty"`
}

type enrolment struct {
	URL        string           `json:"url"`
	SigningKey protocol.Base64  `json:"signing_key"`
	UVKey      protocol.Base64  `json:"uv_key,omitempty"`
	Password   *kept.Password   `json:"password,omitempty"`
	ClientCert protocol.Base64  `json:"client_cert"`
	Floors     []protocol.Floor `json:"floors"`
	At         time.Time        `json:"at"`
}

func (e enrolment) key() protocol.PublicKey { return protocol.PublicKey(e.SigningKey) }

// uvKey returns nil if there is none.
func (e enrolment) uvKey() *protocol.PublicKey {
	if e.UVKey == nil {
		return nil
	}
	key := protocol.PublicKey(e.UVKey)
	return &key
}

func (e enrolment) client() protocol.ClientID { return protocol.ClientIDOf(e.key()) }

// floor returns the client's lowest acceptable level of a service, 1 if not listed.
func (e enrolment) floor(service protocol.Service) protocol.Level {
	least := protocol.Level(1)
	for _, f := range e.Floors {
		if f.Service == service {
			least = max(least, f.MinLevel)
		}
	}
	return least
}

// readState returns a new state if the file does not exist.
func readState(read func(name string) ([]byte, error)) (state, error) {
	b, err := read(stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return state{Version: stateVersion}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("reading the state: %w", err)
	}
	var s state
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return state{}, fmt.Errorf("%s: %v: %w", stateFile, err, ErrState)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return state{}, fmt.Errorf("%s: trailing data: %w", stateFile, ErrState)
	}
	if err := s.validate(); err != nil {
		return state{}, fmt.Errorf("%s: %v: %w", stateFile, err, ErrState)
	}
	return s, nil
}

// validate checks the relations between members. Decoding has verified the certificates of the trust
// state.
func (s state) validate() error {
	if s.Version != stateVersion {
		return fmt.Errorf("version %d, want %d", s.Version, stateVersion)
	}
	if (s.Enrolment == nil) != (s.Trust == nil) {
		return errors.New("enrolment and trust come together")
	}
	if s.Enrolling != nil {
		if err := s.Enrolling.validate(); err != nil {
			return fmt.Errorf("enrolling: %v", err)
		}
	}
	if s.Enrolment != nil {
		if _, err := protocol.ParsePublicKey(s.Enrolment.SigningKey); err != nil {
			return fmt.Errorf("enrolment: %v", err)
		}
		if _, err := protocol.ParsePublicKey(s.Enrolment.UVKey); s.Enrolment.UVKey != nil && err != nil {
			return fmt.Errorf("enrolment: uv key: %v", err)
		}
	}
	if s.Session == nil {
		return nil
	}
	return s.validateSession()
}

func (e enrolling) validate() error {
	req, err := enrol.ParseRequest(e.Body)
	if err != nil {
		return err
	}
	if (e.Password == nil) != (req.Password == nil) || e.Password != nil && !e.Password.Fits(req.Password) {
		return errors.New("password of another request")
	}
	return nil
}

func (s state) validateSession() error {
	if s.Enrolment == nil {
		return errors.New("session without an enrolment")
	}
	e, err := s.Session.open()
	if err != nil {
		return fmt.Errorf("session: %v", err)
	}
	if e.p1.Client != s.Enrolment.client() {
		return errors.New("session of another client")
	}
	if e.p1.Serial.Counter() > s.Counter {
		return fmt.Errorf("session has counter %d, above %d", e.p1.Serial.Counter(), s.Counter)
	}
	return nil
}

func (s state) marshal() ([]byte, error) {
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encoding the state: %w", err)
	}
	return append(b, '\n'), nil
}

// Key is a phone's P-256 signing key. Real phones have a non-exportable one in a keystore; this
// package has one in software.
type Key interface {
	protocol.DigestSigner
	Public() protocol.PublicKey
}

// KeyStore stores a phone's keys. Keys are durable when Create returns.
type KeyStore interface {
	// Create makes a new key.
	Create(ctx context.Context) (Key, error)
	// Load returns the key with this public key.
	Load(ctx context.Context, public protocol.PublicKey) (Key, error)
	// Delete deletes a key permanently. Deleting a missing key is not an error.
	Delete(ctx context.Context, public protocol.PublicKey) error
}

// fileKeys stores each key as PKCS#8 PEM in a file of mode 0600 in the state directory, named after
// its client id.
type fileKeys struct{ dir *durable.Dir }

const pemType = "PRIVATE KEY"

func keyFile(public protocol.PublicKey) string {
	return "key-" + protocol.ClientIDOf(public).String() + ".pem"
}

func (s fileKeys) Create(context.Context) (Key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a signing key: %w", err)
	}
	key, err := newFileKey(private)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("encoding the signing key: %w", err)
	}
	if err := s.dir.Write(keyFile(key.public), pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})); err != nil {
		return nil, fmt.Errorf("storing the signing key: %w", err)
	}
	return key, nil
}

func (s fileKeys) Load(_ context.Context, public protocol.PublicKey) (Key, error) {
	b, err := s.dir.Read(keyFile(public))
	if err != nil {
		return nil, fmt.Errorf("loading the signing key: %w", err)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, fmt.Errorf("signing key file is not one PEM %s: %w", pemType, ErrState)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("signing key: %v: %w", err, ErrState)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("signing key is a %T: %w", parsed, ErrState)
	}
	key, err := newFileKey(private)
	if err != nil || key.public != public {
		return nil, fmt.Errorf("signing key file contains another key: %w", ErrState)
	}
	return key, nil
}

func (s fileKeys) Delete(_ context.Context, public protocol.PublicKey) error {
	if err := s.dir.Remove(keyFile(public)); err != nil {
		return fmt.Errorf("deleting a signing key: %w", err)
	}
	return nil
}

type fileKey struct {
	secret.Hidden
	private *ecdsa.PrivateKey
	public  protocol.PublicKey
}

func newFileKey(private *ecdsa.PrivateKey) (fileKey, error) {
	public, err := protocol.CompressKey(&private.PublicKey)
	return fileKey{private: private, public: public}, err
}

func (k fileKey) Public() protocol.PublicKey { return k.public }

// SignDigest returns r‖s, 64 bytes.
func (k fileKey) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k.private, digest)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:protocol.SignatureSize/2])
	s.FillBytes(sig[protocol.SignatureSize/2:])
	return sig, nil
}
