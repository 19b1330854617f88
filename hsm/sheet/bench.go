package sheet

// The operations that are measured.
const (
	Sign   = "sign-p256"
	Derive = "derive-p256"
	MAC    = "mac"
)

// Operations lists them.
var Operations = []string{Sign, Derive, MAC}

// The ways an operation is measured.
const (
	PathRaw      = "raw"               // a C loop, a thread for each session
	PathService  = "service"           // the appliance's way, through worker processes
	PathVerified = "service, verified" // and the signature checked in software
)

// Bench compares the service with the token it stands on.
type Bench struct {
	Workers  int        `json:"workers"`
	Sessions int        `json:"sessions"` // of each worker
	Callers  int        `json:"callers"`
	Seconds  float64    `json:"seconds"` // of each measurement
	Measured []Measured `json:"measured"`
	Verify   Stats      `json:"verify"` // of P-256 signatures in software, one thread
}

// Measured is the speed of one operation one way.
type Measured struct {
	Operation string `json:"operation"`
	Path      string `json:"path"`
	Parallel  int    `json:"parallel"` // threads of raw, callers of the service
	Stats
	OfRawOne float64 `json:"of_raw_one"` // of the raw rate with one thread
	OfRawAll float64 `json:"of_raw_all"` // of the raw rate with a thread for each session
}

// AddRaw adds what a loop measured.
func (b *Bench) AddRaw(r Raw) {
	for _, c := range r.Curves {
		for _, p := range c.Points {
			b.Measured = append(b.Measured, Measured{Operation: c.Operation, Path: PathRaw, Parallel: p.Sessions, Stats: p.Stats})
		}
	}
}

// Compare fills in the ratios. A rate that was not measured leaves 0.
func (b *Bench) Compare() {
	for i, m := range b.Measured {
		b.Measured[i].OfRawOne = ratio(m.Rate, b.rawRate(m.Operation, 1))
		b.Measured[i].OfRawAll = ratio(m.Rate, b.rawRate(m.Operation, b.Workers*b.Sessions))
	}
}

func (b *Bench) rawRate(operation string, threads int) float64 {
	for _, m := range b.Measured {
		if m.Operation == operation && m.Path == PathRaw && m.Parallel == threads {
			return m.Rate
		}
	}
	return 0
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return thousandth(a / b)
}
