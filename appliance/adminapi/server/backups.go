package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"countersign/appliance/adminapi"
	"countersign/appliance/parties"
	"countersign/appliance/recovery"
)

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
		Missing: append([]string{}, b.MissingLabels()...), File: b.File,
	}
	if b.File != nil {
		out.SHA256 = hex.EncodeToString(b.SHA256[:])
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

// mostProblem bounds the text of an [adminapi.Kept], in bytes.
const mostProblem = 500

// kept records whether a peer keeps the backup that it got.
func (s *Server) kept(r *http.Request, body adminapi.Kept) (none adminapi.None, err error) {
	sum, err := hex.DecodeString(body.SHA256)
	switch {
	case err != nil || len(sum) != sha256.Size:
		return none, fmt.Errorf("%w: sha256 %q: want 64 hexadecimal digits", parties.ErrInput, body.SHA256)
	case len(body.Problem) > mostProblem:
		return none, fmt.Errorf("%w: problem of %d bytes: at most %d", parties.ErrInput, len(body.Problem), mostProblem)
	}
	return none, s.Appliance.Recovery.Keep(r.Context(), recovery.Kept{SHA256: [32]byte(sum), Problem: body.Problem})
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
