package httpapi

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"

	"countersign/appliance"
	"countersign/appliance/admin"
)

func (a *Admin) backUpKeys(r *http.Request) (any, error) {
	var req admin.BackUpKeys
	if err := decodeBody(r, &req); err != nil {
		return nil, err
	}
	life, err := lifeOf(r)
	if err != nil {
		return nil, err
	}
	b, err := a.Appliance.BackUpKeys(r.Context(), appliance.BackUp{Partial: req.Partial, Dry: req.DryRun, Life: life})
	if err != nil {
		return nil, err
	}
	return keyBackupWords(b), nil
}

func keyBackupWords(b appliance.KeyBackup) admin.KeyBackup {
	words := admin.KeyBackup{
		At: b.Document.Time(), Sequence: b.Document.Point.Sequence, Keys: []string{}, Missing: []string{}, BackupKeys: []string{},
		SHA256: hex.EncodeToString(b.SHA256[:]), File: b.File,
	}
	for _, i := range b.Items {
		words.Keys = append(words.Keys, i.Spec.Label)
	}
	words.Missing = append(words.Missing, b.MissingLabels()...)
	for _, p := range b.Recipients() {
		words.BackupKeys = append(words.BackupKeys, p.String())
	}
	return words
}

// copyTimeout is how long a copy of the database may take to be made and read.
const copyTimeout = time.Hour

// copyStore answers with the database. The listener's time for an answer is too short
// for it.
func (a *Admin) copyStore(w http.ResponseWriter, r *http.Request) error {
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(copyTimeout)); err != nil {
		return err
	}
	c, err := a.Appliance.CopyStore(r.Context())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // it was read only
	words, err := json.Marshal(admin.StoreCopy{
		Sequence: c.Point.Sequence, At: c.Point.At, Size: c.Size, SHA256: hex.EncodeToString(c.SHA256[:]), Statement: c.Statement,
	})
	if err != nil {
		return err
	}
	w.Header().Set(admin.HeaderCopy, string(words))
	w.Header().Set("Content-Type", "application/vnd.sqlite3")
	w.Header().Set("Content-Length", strconv.FormatInt(c.Size, 10))
	if _, err := io.Copy(w, c); err != nil {
		a.Logger.Info("a copy of the store was not read to its end", "error", err)
	}
	return nil
}
