package cri

import (
	"sync"
	"time"
)

const (
	// minWindow is the least time between two samples that a rate is computed from.
	minWindow = 100 * time.Millisecond
	// maxSampleAge is how long a sample is kept that nobody adds to.
	maxSampleAge = 10 * time.Minute
)

// sampler turns cumulative CPU times into rates. A rate covers the time since the sample before.
type sampler struct {
	now   func() time.Time
	mu    sync.Mutex
	last  map[string]sample
	swept time.Time
}

type sample struct {
	at      time.Time
	usageNS uint64
	// rate in nanocores over the window before; valid where known.
	rate  uint64
	known bool
}

func newSampler(now func() time.Time) *sampler {
	return &sampler{now: now, last: map[string]sample{}, swept: now()}
}

// rate adds a sample and returns nanocores, and false while there is only one sample. Samples that are too close
// to each other give the rate before; a counter that went back starts anew.
func (s *sampler) rate(key string, at time.Time, usageNS uint64) (nanoCores uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep()
	old, seen := s.last[key]
	window := at.Sub(old.at)
	switch {
	case !seen || usageNS < old.usageNS:
		s.last[key] = sample{at: at, usageNS: usageNS}
		return 0, false
	case window < minWindow:
		return old.rate, old.known
	}
	// The quotient of floats cannot overflow, and 15 digits are plenty.
	rate := uint64(float64(usageNS-old.usageNS) / window.Seconds())
	s.last[key] = sample{at: at, usageNS: usageNS, rate: rate, known: true}
	return rate, true
}

// sweep forgets what has not been asked for in a while. The caller holds mu.
func (s *sampler) sweep() {
	now := s.now()
	if now.Sub(s.swept) < maxSampleAge {
		return
	}
	s.swept = now
	for key, old := range s.last {
		if now.Sub(old.at) >= maxSampleAge {
			delete(s.last, key)
		}
	}
}
