package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// errTick: nothing came, or nothing could be sent, for the time of [Socket.Tick].
var errTick = errors.New("nothing yet")

// IsTick reports whether a Read or Write ended only because of [Socket.Tick], so that the
// caller can check its context and try again.
func IsTick(err error) bool { return errors.Is(err, errTick) }

// Socket is one end of a pair of SOCK_SEQPACKET sockets: each Write is one message and
// each Read returns one, complete. Calls block their thread. That costs a thread for each,
// and saves what the runtime's poller adds to a message that is awaited: two system calls
// and a switch of threads. Several goroutines may read and write at once.
type Socket struct {
	mu sync.RWMutex // guards fd, held for reading while it is in use
	fd int          // -1 once closed
}

// Pair returns the two ends of a connection; theirs is for a child process.
func Pair() (ours *Socket, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making socket pair: %w", err)
	}
	return NewSocket(fds[0]), os.NewFile(uintptr(fds[1]), "parent"), nil
}

// NewSocket takes over a file descriptor in blocking mode.
func NewSocket(fd int) *Socket { return &Socket{fd: fd} }

// Tick makes a Read or Write that takes longer than d return an error of [IsTick].
func (s *Socket) Tick(d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	return s.use(func(fd int) error {
		return errors.Join(
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		)
	})
}

// Read returns one message. It cuts a message that is longer than b, so b has one byte
// more than the longest. A closed pair is [io.EOF].
func (s *Socket) Read(b []byte) (n int, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return 0, io.EOF
	}
	for {
		n, err = unix.Read(s.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return 0, errTick
		}
		if err == nil && n == 0 || err == unix.ECONNRESET {
			return 0, io.EOF
		}
		return max(n, 0), err
	}
}

// Write sends one message, complete or not at all. A pair that was shut down is
// [io.ErrClosedPipe].
func (s *Socket) Write(b []byte) (n int, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return 0, io.ErrClosedPipe
	}
	for {
		n, err = unix.Write(s.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return 0, errTick
		}
		if err == unix.EPIPE || err == unix.ECONNRESET {
			err = io.ErrClosedPipe
		}
		return max(n, 0), err
	}
}

// Shutdown ends the connection for both sides: reads return [io.EOF].
func (s *Socket) Shutdown() {
	_ = s.use(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
}

func (s *Socket) use(f func(fd int) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	return f(s.fd)
}

// Close shuts down, waits until no call reads or writes, and closes.
func (s *Socket) Close() error {
	s.Shutdown()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}
