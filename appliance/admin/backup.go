package admin

import "time"

// BackUpKeys is the body of POST key/backup.
type BackUpKeys struct {
	Partial bool `json:"partial,omitempty"` // though some keys have no sealed copy
	DryRun  bool `json:"dry_run,omitempty"` // tell what it would cover, and make none
}

// KeyBackup is its answer.
type KeyBackup struct {
	At         time.Time `json:"at"`
	Sequence   uint64    `json:"sequence"`    // of the newest audit record then
	Keys       []string  `json:"keys"`        // name@version of every key that it brings back
	Missing    []string  `json:"missing"`     // … of those without a sealed copy
	BackupKeys []string  `json:"backup_keys"` // hex, 33 bytes, whose shares are needed
	SHA256     string    `json:"sha256"`      // of File, hex
	File       []byte    `json:"file,omitempty"`
}

// HeaderCopy of the answer of POST store/backup, whose body is the database, is a
// [StoreCopy] as JSON.
const HeaderCopy = "Countersign-Copy"

// StoreCopy tells of a copy of the database.
type StoreCopy struct {
	Sequence  uint64    `json:"sequence"`            // of its newest audit record: the recovery point
	At        time.Time `json:"at"`                  // of that record
	Size      int64     `json:"size"`                // bytes
	SHA256    string    `json:"sha256"`              // hex
	Statement []byte    `json:"statement,omitempty"` // signed by the appliance
}
