package wire

// Modes of a process that enters a container.
const (
	// ModeStart sets up a new container, then becomes its command.
	ModeStart = "start"
	// ModeExec joins a running container, then becomes the command.
	ModeExec = "exec"
	// ModePodInit becomes process 1 of a shared PID namespace and reaps.
	ModePodInit = "podinit"
)

// FirstFD is the number of the first extra descriptor in an entering process:
// 0 to 2 are stdio, 3 is the sync socket, 4 the file holding Init.
const (
	SyncFD  = 3
	SpecFD  = 4
	FirstFD = 5
)

// Init is everything a process that enters a container needs. Every FD field is an
// index into the extra descriptors (descriptor FirstFD+index); -1 means none.
type Init struct {
	Mode string
	Args []string
	Env  []string
	Cwd  string

	UID    uint32
	GID    uint32
	Groups []int

	// Capability sets as bit masks. Inheritable equals Ambient: nothing else is ever
	// inheritable (CVE-2022-24769).
	Bounding uint64
	Caps     uint64
	Ambient  uint64

	NoNewPrivs bool
	// Seccomp is a classic BPF program, 8 bytes an instruction; empty means none.
	Seccomp      []byte
	SeccompFlags uint32
	Rlimits      []Rlimit

	SetOOM bool
	OOMAdj int

	TTY bool

	// Namespaces to join (setns) before anything else.
	Joins []Join
	// Procs are open cgroup.procs files to write "0" into, before joining.
	Procs []int
	// CgroupNS asks for a new cgroup namespace after entering the cgroup.
	CgroupNS bool

	// Only for ModeStart.
	RootFD   int
	StageDir string
	Readonly bool
	Mounts   []Mount
	Devices  []Device
	Masked   []string
	ReadOnly []string
	NullIn   bool
}

// Join is one setns call: descriptor index and CLONE_NEW* flags (several for a pidfd).
type Join struct {
	FD    int
	Flags int
}

// Rlimit is one setrlimit call.
type Rlimit struct {
	Kind       int
	Soft, Hard uint64
}

// Mount kinds.
const (
	MountBind = 0 // FD is a detached mount
	MountFS   = 1 // Type is a file system to make, with Options key=value
	MountDev  = 2 // the tmpfs for /dev, filled with Devices
)

// Mount is one mount below the container's root.
type Mount struct {
	Kind    int
	FD      int
	Type    string
	Target  string
	Options []string
	// Attr are MOUNT_ATTR_* flags, for kinds other than MountBind.
	Attr uint64
	// File says that a missing target is made as a file.
	File bool
}

// Device is one node made on the container's own /dev.
type Device struct {
	Path         string
	Mode         uint32 // type and permission bits
	Major, Minor uint32
	UID, GID     uint32
}

// Walk implements Walker.
func (s *Init) Walk(c *Coder) {
	c.Str(&s.Mode)
	c.Strs(&s.Args)
	c.Strs(&s.Env)
	c.Str(&s.Cwd)
	c.U32(&s.UID)
	c.U32(&s.GID)
	c.Ints(&s.Groups)
	c.U64(&s.Bounding)
	c.U64(&s.Caps)
	c.U64(&s.Ambient)
	c.Bool(&s.NoNewPrivs)
	c.Bytes(&s.Seccomp)
	c.U32(&s.SeccompFlags)
	list(c, &s.Rlimits, func(r *Rlimit) {
		c.Int(&r.Kind)
		c.U64(&r.Soft)
		c.U64(&r.Hard)
	})
	c.Bool(&s.SetOOM)
	c.Int(&s.OOMAdj)
	c.Bool(&s.TTY)
	list(c, &s.Joins, func(j *Join) { c.Int(&j.FD); c.Int(&j.Flags) })
	c.Ints(&s.Procs)
	c.Bool(&s.CgroupNS)
	c.Int(&s.RootFD)
	c.Str(&s.StageDir)
	c.Bool(&s.Readonly)
	list(c, &s.Mounts, func(m *Mount) { m.walk(c) })
	list(c, &s.Devices, func(d *Device) { d.walk(c) })
	c.Strs(&s.Masked)
	c.Strs(&s.ReadOnly)
	c.Bool(&s.NullIn)
}

func (m *Mount) walk(c *Coder) {
	c.Int(&m.Kind)
	c.Int(&m.FD)
	c.Str(&m.Type)
	c.Str(&m.Target)
	c.Strs(&m.Options)
	c.U64(&m.Attr)
	c.Bool(&m.File)
}

func (d *Device) walk(c *Coder) {
	c.Str(&d.Path)
	c.U32(&d.Mode)
	c.U32(&d.Major)
	c.U32(&d.Minor)
	c.U32(&d.UID)
	c.U32(&d.GID)
}
