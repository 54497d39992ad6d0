package image

import (
	"context"
	"sync"
)

// keyedMutex is a mutex for each key, which exists while somebody holds or waits for it.
type keyedMutex[K comparable] struct {
	mu   sync.Mutex
	held map[K]*keyLock
}

type keyLock struct {
	token chan struct{}
	users int
}

func newKeyedMutex[K comparable]() *keyedMutex[K] { return &keyedMutex[K]{held: map[K]*keyLock{}} }

// lock returns what unlocks, or the context's error.
func (m *keyedMutex[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	m.mu.Lock()
	l := m.held[key]
	if l == nil {
		l = &keyLock{token: make(chan struct{}, 1)}
		m.held[key] = l
	}
	l.users++
	m.mu.Unlock()

	leave := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(m.held, key)
		}
	}
	select {
	case l.token <- struct{}{}:
		return func() { <-l.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
