package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"countersign/appliance/store/audit"
)

// Listen listens on a Unix socket of mode 0600 and accepts connections of the daemon's own user and of root. It
// replaces a socket file that a dead daemon left behind; a socket that answers is an error.
func Listen(path string) (net.Listener, error) {
	listener, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return ownUser{listener}, nil
}

func listen(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("there is a file that is not a socket")
	}
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, errors.New("another daemon answers there")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// ownUser accepts connections of this process's user and of root.
type ownUser struct{ net.Listener }

func (l ownUser) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, err := Peer(conn); err == nil && (peer.Uid == 0 || int(peer.Uid) == os.Getuid()) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// PeerContext is the ConnContext of an HTTP server on the admin socket: the user at the other end is the actor of every
// request on the connection, and audit records name it.
func PeerContext(ctx context.Context, conn net.Conn) context.Context {
	peer, err := Peer(conn)
	if err != nil {
		return ctx
	}
	return audit.By(ctx, audit.UserOf(peer.Uid))
}

// Peer returns the credentials of the process at the other end of a Unix socket (SO_PEERCRED).
func Peer(conn net.Conn) (peer *unix.Ucred, err error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(err, controlErr)
}
