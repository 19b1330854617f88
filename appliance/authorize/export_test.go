package authorize

import "countersign/internal/clock"

// SetBoot replaces the host's own count of time.
func SetBoot(a *Service, boot func() clock.Boot) { a.boot = boot }

// SetRefusedClients bounds the clients whose refusals are counted.
func SetRefusedClients(a *Service, most int) { a.refusals.most = most }
