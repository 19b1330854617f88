package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/attack/arena"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

// foreignRoot replaces root 1 by one of the attacker's own, and certifies the keys that
// are on the token by it.
func foreignRoot(w *world.World) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		root, err := newRoot(ctx)
		if err != nil {
			return err
		}
		own := keyring.Settings{Domain: world.Domain, RootCerts: [][]byte{root.cert}, NextRootHash: root.next}
		for name, value := range own.Values() {
			if err := execs(ctx, tx, "UPDATE setting SET value = ? WHERE name = ?", value, name); err != nil {
				return err
			}
		}
		row, err := root.row(store.Key{})
		if err != nil {
			return err
		}
		if err := execs(ctx, tx, "UPDATE key SET public = ?, id = ? WHERE name = 'root' AND version = 1", row.Public, row.ID[:]); err != nil {
			return err
		}
		return root.certifyAll(ctx, tx, w.Root)
	})
}

// foreign is a root of the attacker's own.
type foreign struct {
	key  arena.Key
	cert []byte
	next [32]byte
}

func newRoot(ctx context.Context) (r foreign, err error) {
	r.key = arena.NewKey()
	point := arena.NewKey().Point()
	r.next = sha256.Sum256(point[:])
	r.cert, err = trust.SignRootCert(ctx, r.key, trust.RootCert{Number: 1, Key: r.key.Point(), NextHash: r.next})
	return r, err
}

// row is that of this root in the registry.
func (r foreign) row(k store.Key) (store.Key, error) {
	point := r.key.Point()
	key := keyring.Key{Key: k}
	key.Public = point[:]
	public, err := point.ECDSA()
	if err != nil {
		return k, err
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	sum := sha256.Sum256(spki)
	key.ID, key.Cert = [20]byte(sum[:20]), nil
	key.Sealed, key.SealedFor = nil, nil
	return key.Key, err
}

// certify signs what the true root certified.
func (r foreign) certify(ctx context.Context, cert []byte, trueRoot protocol.PublicKey) ([]byte, error) {
	k, err := trust.VerifyKeyCert(cert, trueRoot)
	if err != nil {
		return nil, err
	}
	return trust.SignKeyCert(ctx, r.key, k)
}

func (r foreign) certifyAll(ctx context.Context, tx *sql.Tx, trueRoot protocol.PublicKey) (err error) {
	found, err := tx.QueryContext(ctx, "SELECT cert FROM key WHERE cert IS NOT NULL AND name <> 'root'")
	if err != nil {
		return err
	}
	var certs [][]byte
	for found.Next() {
		var cert []byte
		err = errors.Join(err, found.Scan(&cert))
		certs = append(certs, cert)
	}
	if err := errors.Join(err, found.Err(), found.Close()); err != nil {
		return err
	}
	for _, cert := range certs {
		own, err := r.certify(ctx, cert, trueRoot)
		if err == nil {
			err = execs(ctx, tx, "UPDATE key SET cert = ? WHERE cert = ?", own, cert)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
