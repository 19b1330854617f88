package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"countersign/appliance/adminapi"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/recovery"
	"countersign/hsm"
)

func (s *Server) bindKeys(m *mux) {
	r := adminapi.Routes
	bind(m, r.KeyList, func(*http.Request, adminapi.None) ([]adminapi.Key, error) {
		return each(s.Appliance.Keys.List(), keyJSON), nil
	})
	bind(m, r.KeyShow, s.key)
	bind(m, r.KeyPlan, s.keyPlan)
	bind(m, r.KeyAttest, s.attestKeys)
	bindPreviewed(m, r.KeyCreate, s.step(keyplan.Create))
	bindPreviewed(m, r.KeyRotate, s.step(keyplan.Rotate))
	bindPreviewed(m, r.KeyActivate, s.step(keyplan.Activate))
	bindPreviewed(m, r.KeyRetire, s.step(keyplan.Retire))
	bindPreviewed(m, r.KeySuspend, s.step(keyplan.Suspend))
	bindPreviewed(m, r.KeyResume, s.step(keyplan.Resume))
	bindPreviewed(m, r.KeyDestroy, s.step(keyplan.Destroy))
	bindSent(m, r.KeyBackup, s.backUpKeys)
	bindSent(m, r.StoreBackup, s.copyStore)
}

// key answers with one version, NAME@VERSION, or with every version of a name.
func (s *Server) key(r *http.Request, _ adminapi.None) ([]adminapi.Key, error) {
	name, version, err := keyplan.ParseRef(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	var found []adminapi.Key
	for _, v := range s.Appliance.Keys.List() {
		if v.Name == name && (version == 0 || v.Version == version) {
			found = append(found, keyJSON(v))
		}
	}
	if found == nil {
		return nil, fmt.Errorf("key %s: %w", r.PathValue("name"), keyplan.ErrKeyName)
	}
	return found, nil
}

func (s *Server) keyPlan(*http.Request, adminapi.None) (adminapi.KeyPlan, error) {
	return adminapi.KeyPlan{
		Auto: s.Appliance.Keys.Auto(), Records: adminapi.Renewal(s.Appliance.Keys.Renewal()),
		Keys: each(s.Appliance.Keys.Due(), func(d keyplan.Due) adminapi.KeyDue {
			return adminapi.KeyDue{Name: d.Name, Version: d.Version, Standing: string(d.Standing), At: when(d.At), Next: d.Next}
		}),
	}, nil
}

func (s *Server) attestKeys(r *http.Request, _ adminapi.None) ([]adminapi.Finding, error) {
	found, err := s.Appliance.Keys.Attest(r.Context())
	return each(found, func(f keylife.Finding) adminapi.Finding {
		return adminapi.Finding{
			Key: f.Name, Token: f.Token, ID: hex.EncodeToString(f.ID), Origin: string(f.Origin),
			Good: f.Good(), Unknown: f.Unknown, Drift: append([]string{}, f.Drift...),
		}
	}), err
}

// stepped is the handler of a step of a key.
type stepped = func(r *http.Request, body adminapi.KeyStep) (*adminapi.Change, []adminapi.Key, error)

// step takes a step. With dry_run it answers with its result, or with its change request, without taking it.
func (s *Server) step(verb keyplan.Verb) stepped {
	return func(r *http.Request, body adminapi.KeyStep) (request *adminapi.Change, keys []adminapi.Key, err error) {
		name, version, err := keyplan.ParseRef(r.PathValue("name"))
		if err != nil {
			return nil, nil, err
		}
		step := keyplan.Step{Verb: verb, Name: name, Version: version, Early: body.Early, Compromised: body.Compromised}
		life, err := lifeOf(r)
		if err != nil {
			return nil, nil, err
		}
		var views []keyplan.View
		switch {
		case body.DryRun && body.Request:
			request, err = s.previewStep(r.Context(), step, life)
			return request, nil, err
		case body.DryRun:
			views, err = s.Appliance.Keys.Plan(r.Context(), step)
		default:
			views, err = s.Appliance.Keys.TakeWithin(r.Context(), step, life)
		}
		return nil, each(views, keyJSON), err
	}
}

// previewStep returns the change request that a step would make, one that requires nothing if the step needs no vote.
func (s *Server) previewStep(ctx context.Context, step keyplan.Step, life time.Duration) (*adminapi.Change, error) {
	c, asks, err := s.Appliance.Keys.Preview(ctx, step, life)
	if err != nil || !asks {
		return &adminapi.Change{}, err
	}
	request := changeJSON(c)
	return &request, nil
}

func keyJSON(v keyplan.View) adminapi.Key {
	k := adminapi.Key{
		Name: v.Name, Version: v.Version, State: string(v.State), Accepted: v.Accepted,
		Purpose: keyring.Purpose(v.Name), Algorithm: keyring.UsageOf(v.Name).String(),
		Root: v.Root, Origin: string(v.Origin), Tokens: append([]string{}, v.Tokens...), OnToken: v.OnToken, CreatedAt: v.CreatedAt,
		NotBefore: when(v.NotBefore), NotAfter: when(v.NotAfter), ActivatedAt: when(v.ActivatedAt), RetiredAt: when(v.RetiredAt),
		SuspendedAt: when(v.SuspendedAt), CompromisedAt: when(v.CompromisedAt), DestroyedAt: when(v.DestroyedAt),
		OverlapUntil: when(v.OverlapEnd),
	}
	if v.Sealed != nil {
		k.SealedFor = hex.EncodeToString(v.SealedFor)
	}
	if v.ID != (hsm.KeyID{}) {
		k.ID = hex.EncodeToString(v.ID[:])
	}
	if v.Public != nil {
		k.PublicKey = hex.EncodeToString(v.Public)
		if der, err := v.SPKI(); err == nil { // CKA_ID is the beginning of this hash
			sum := sha256.Sum256(der)
			k.SPKI = hex.EncodeToString(sum[:])
		}
	}
	return k
}

// backUpKeys sends a backup of the keys. Its approval is spent once the backup is sent.
func (s *Server) backUpKeys(w *sender, r *http.Request, body adminapi.KeyBackupAsk) error {
	life, err := lifeOf(r)
	if err != nil {
		return err
	}
	b := recovery.BackUp{Partial: body.Partial, Dry: body.DryRun, Life: life}
	return s.Appliance.Recovery.BackUpKeys(r.Context(), b, func(made recovery.KeyBackup) error {
		return w.json(keyBackupJSON(made))
	})
}

func keyBackupJSON(b recovery.KeyBackup) adminapi.KeyBackup {
	out := adminapi.KeyBackup{
		At: b.Document.Time(), Sequence: b.Document.Point.Sequence, Keys: []string{}, BackupKeys: []string{},
		Missing: append([]string{}, b.MissingLabels()...), SHA256: hex.EncodeToString(b.SHA256[:]), File: b.File,
	}
	for _, i := range b.Items {
		out.Keys = append(out.Keys, i.Spec.Label)
	}
	for _, p := range b.Recipients() {
		out.BackupKeys = append(out.BackupKeys, p.String())
	}
	return out
}

// copyTimeout bounds the making and the sending of a copy of the database. The listener's time for an answer is too
// short for it.
const copyTimeout = time.Hour

// copyStore sends a copy of the database. Its approval is spent once the copy is sent.
func (s *Server) copyStore(w *sender, r *http.Request, body adminapi.Ask) error {
	life, err := lifeOf(r)
	if err != nil {
		return err
	}
	if body.DryRun {
		c, err := s.Appliance.Requests.Preview(r.Context(), recovery.DraftCopy(life))
		if err != nil {
			return err
		}
		return w.json(changeJSON(c))
	}
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(copyTimeout)); err != nil {
		return err
	}
	return s.Appliance.Recovery.CopyStore(r.Context(), life, w.database)
}

// sender sends an answer before the change behind it has ended. The answer has no length, so for the peer it ends when
// the handler returns: then the approval is spent.
type sender struct {
	http.ResponseWriter
	begun bool
}

// Unwrap lets [http.ResponseController] find the connection.
func (w *sender) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write notes that the answer has begun.
func (w *sender) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// sent returns an error unless the connection took the whole answer.
func (w *sender) sent() error { return http.NewResponseController(w).Flush() }

func (w *sender) json(value any) error {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		return err
	}
	return w.sent()
}

func (w *sender) database(c recovery.StoreCopy) error {
	about, err := json.Marshal(adminapi.StoreCopy{
		Sequence: c.Point.Sequence, At: c.Point.At, Size: c.Size, SHA256: hex.EncodeToString(c.SHA256[:]), Statement: c.Statement,
	})
	if err != nil {
		return err
	}
	w.Header().Set(adminapi.HeaderCopy, string(about))
	w.Header().Set("Content-Type", "application/vnd.sqlite3")
	if _, err := io.Copy(w, c); err != nil {
		return err
	}
	return w.sent()
}

// bindSent serves a route whose handler sends the answer itself. After an error in the middle of an answer it ends the
// connection, so that the peer does not take a part for the whole.
func bindSent[Req, Res any](m *mux, route adminapi.Route[Req, Res], h func(*sender, *http.Request, Req) error) {
	m.HandleFunc(route.Pattern(), func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		out := &sender{ResponseWriter: w}
		body, err := decode[Req](r)
		if err == nil {
			err = h(out, r, body)
		}
		switch {
		case err != nil && out.begun:
			m.log.Info("sending ended early", "path", r.URL.Path, "error", err)
			panic(http.ErrAbortHandler)
		case err != nil:
			w.Header().Del(adminapi.HeaderCopy)
			m.fail(w, r, err)
		}
	})
}
