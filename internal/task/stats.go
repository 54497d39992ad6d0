package task

import "time"

// Stats of a sandbox at one moment.
type Stats struct {
	At         time.Time
	CPU        CPU
	Memory     Memory
	Interfaces []Interface
	Containers []ContainerStats
}

// ContainerStats of one container.
type ContainerStats struct {
	ID              string
	CPU             CPU
	Memory          Memory
	Pids, PidsLimit uint64
	WritableBytes   uint64
	WritableInodes  uint64
}

// CPU usage; UsageNS is cumulative nanoseconds.
type CPU struct {
	UsageNS uint64
	PSI     *PSI
}

// Memory in bytes.
type Memory struct {
	Usage, WorkingSet, RSS, Available, Swap uint64
	PageFaults, MajorPageFaults             uint64
	PSI                                     *PSI
}

// PSI is pressure stall information.
type PSI struct{ Full, Some PSIData }

// PSIData is one line of it; Total in microseconds, averages in percent.
type PSIData struct {
	Total                uint64
	Avg10, Avg60, Avg300 float64
}

// Interface counters, as seen by the pod.
type Interface struct {
	Name                                 string
	RxBytes, RxErrors, TxBytes, TxErrors uint64
}
