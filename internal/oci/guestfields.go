package oci

// treatment is what ForGuest does with a field of the runtime spec.
type treatment int

const (
	// carry: the guest gets the same value.
	carry treatment = iota + 1
	// translate: the guest gets what means the same there; ForGuest's code says how, and refuses the values for
	// which there is nothing.
	translate
	// refuse: any value but the zero value is an error that names the field.
	refuse
)

// guestFields says for every field of the runtime spec, as Type.Field of specs-go, what ForGuest does with it. Fields of
// a refused struct are not listed. A test walks the spec by reflection, fails for a field that is missing here, and holds
// ForGuest to what the table says.
var guestFields = map[string]treatment{
	"Spec.Version":     translate, // the guest's runtime is ours: the version that this code knows
	"Spec.Process":     carry,
	"Spec.Root":        carry,
	"Spec.Hostname":    translate, // the sandbox has set it; without an own UTS namespace nobody may again
	"Spec.Domainname":  translate,
	"Spec.Mounts":      translate,
	"Spec.Hooks":       refuse,
	"Spec.Annotations": carry,
	"Spec.Linux":       carry,
	"Spec.Solaris":     refuse,
	"Spec.Windows":     refuse,
	"Spec.VM":          refuse,
	"Spec.ZOS":         refuse,
	"Spec.FreeBSD":     refuse,

	"Process.Terminal":        carry,
	"Process.ConsoleSize":     carry,
	"Process.User":            carry,
	"Process.Args":            carry,
	"Process.CommandLine":     refuse,
	"Process.Env":             carry,
	"Process.Cwd":             carry,
	"Process.Capabilities":    carry,
	"Process.Rlimits":         carry,
	"Process.NoNewPrivileges": carry,
	"Process.ApparmorProfile": translate,
	"Process.OOMScoreAdj":     carry,
	"Process.Scheduler":       carry,
	"Process.SelinuxLabel":    refuse,
	"Process.IOPriority":      carry,
	"Process.ExecCPUAffinity": refuse,

	"Box.Height":          carry,
	"Box.Width":           carry,
	"User.UID":            carry,
	"User.GID":            carry,
	"User.Umask":          carry,
	"User.AdditionalGids": carry,
	"User.Username":       refuse,

	"LinuxCapabilities.Bounding":    carry,
	"LinuxCapabilities.Effective":   carry,
	"LinuxCapabilities.Inheritable": carry,
	"LinuxCapabilities.Permitted":   carry,
	"LinuxCapabilities.Ambient":     carry,

	"POSIXRlimit.Type":         carry,
	"POSIXRlimit.Hard":         carry,
	"POSIXRlimit.Soft":         carry,
	"Scheduler.Policy":         carry,
	"Scheduler.Nice":           carry,
	"Scheduler.Priority":       carry,
	"Scheduler.Flags":          carry,
	"Scheduler.Runtime":        carry,
	"Scheduler.Deadline":       carry,
	"Scheduler.Period":         carry,
	"LinuxIOPriority.Class":    carry,
	"LinuxIOPriority.Priority": carry,

	"Root.Path":     translate, // the agent merges the root from the layers
	"Root.Readonly": carry,

	"Mount.Destination": carry,
	"Mount.Type":        translate,
	"Mount.Source":      translate,
	"Mount.Options":     carry,
	"Mount.UIDMappings": refuse,
	"Mount.GIDMappings": refuse,

	"Linux.UIDMappings":       refuse,
	"Linux.GIDMappings":       refuse,
	"Linux.Sysctl":            refuse,
	"Linux.Resources":         carry,
	"Linux.CgroupsPath":       translate, // the agent's own hierarchy
	"Linux.Namespaces":        translate,
	"Linux.Devices":           translate,
	"Linux.NetDevices":        refuse,
	"Linux.Seccomp":           carry,
	"Linux.RootfsPropagation": carry,
	"Linux.MaskedPaths":       carry,
	"Linux.ReadonlyPaths":     carry,
	"Linux.MountLabel":        refuse,
	"Linux.IntelRdt":          refuse,
	"Linux.MemoryPolicy":      refuse,
	"Linux.Personality":       carry,
	"Linux.TimeOffsets":       refuse,

	"LinuxNamespace.Type":         translate,
	"LinuxNamespace.Path":         translate,
	"LinuxDevice.Path":            translate,
	"LinuxDevice.Type":            translate,
	"LinuxDevice.Major":           translate,
	"LinuxDevice.Minor":           translate,
	"LinuxDevice.FileMode":        carry,
	"LinuxDevice.UID":             carry,
	"LinuxDevice.GID":             carry,
	"LinuxPersonality.Domain":     carry,
	"LinuxPersonality.Flags":      carry,
	"LinuxResources.Devices":      carry, // rules about the guest's own devices
	"LinuxResources.Memory":       carry,
	"LinuxResources.CPU":          carry,
	"LinuxResources.Pids":         carry,
	"LinuxResources.BlockIO":      carry,
	"LinuxResources.Network":      refuse,
	"LinuxResources.Rdma":         refuse,
	"LinuxResources.Unified":      carry,
	"LinuxDeviceCgroup.Allow":     carry,
	"LinuxDeviceCgroup.Type":      carry,
	"LinuxDeviceCgroup.Major":     carry,
	"LinuxDeviceCgroup.Minor":     carry,
	"LinuxDeviceCgroup.Access":    carry,
	"LinuxMemory.Limit":           carry,
	"LinuxMemory.Reservation":     carry,
	"LinuxMemory.Swap":            carry,
	"LinuxPids.Limit":             carry,
	"LinuxCPU.Shares":             carry, // the guest's runc turns shares into a weight
	"LinuxCPU.Quota":              carry,
	"LinuxCPU.Burst":              carry,
	"LinuxCPU.Period":             carry,
	"LinuxCPU.Idle":               carry,
	"LinuxBlockIO.Weight":         carry, // the guest's runc turns it into io.weight
	"LinuxHugepageLimit.Pagesize": translate,
	"LinuxHugepageLimit.Limit":    translate,

	// A guest has cgroup v2 only, whose answer to "no limit" and "off" is the same as not asking.
	"LinuxMemory.Kernel":            refuse,
	"LinuxMemory.KernelTCP":         refuse,
	"LinuxMemory.Swappiness":        refuse,
	"LinuxMemory.DisableOOMKiller":  translate,
	"LinuxMemory.UseHierarchy":      translate,
	"LinuxMemory.CheckBeforeUpdate": carry,
	"LinuxCPU.RealtimeRuntime":      translate,
	"LinuxCPU.RealtimePeriod":       translate,
	// The numbers are the host's, and stay so for whoever has the VM to replace.
	"LinuxCPU.Cpus": carry,
	"LinuxCPU.Mems": carry,
	// A guest has no huge pages: a limit of 0 holds by itself.
	"LinuxResources.HugepageLimits": translate,
	// Block devices are the host's numbers.
	"LinuxBlockIO.LeafWeight":              refuse,
	"LinuxBlockIO.WeightDevice":            refuse,
	"LinuxBlockIO.ThrottleReadBpsDevice":   refuse,
	"LinuxBlockIO.ThrottleWriteBpsDevice":  refuse,
	"LinuxBlockIO.ThrottleReadIOPSDevice":  refuse,
	"LinuxBlockIO.ThrottleWriteIOPSDevice": refuse,

	"LinuxSeccomp.DefaultAction":    carry,
	"LinuxSeccomp.DefaultErrnoRet":  carry,
	"LinuxSeccomp.Architectures":    carry,
	"LinuxSeccomp.Flags":            carry,
	"LinuxSeccomp.ListenerPath":     refuse,
	"LinuxSeccomp.ListenerMetadata": refuse,
	"LinuxSeccomp.Syscalls":         carry,
	"LinuxSyscall.Names":            carry,
	"LinuxSyscall.Action":           carry,
	"LinuxSyscall.ErrnoRet":         carry,
	"LinuxSyscall.Args":             carry,
	"LinuxSeccompArg.Index":         carry,
	"LinuxSeccompArg.Value":         carry,
	"LinuxSeccompArg.ValueTwo":      carry,
	"LinuxSeccompArg.Op":            carry,
}
