package wire

// Packet kinds on a monitor's socket (SOCK_SEQPACKET). Requests carry a sequence
// number the reply repeats; events carry zero.
const (
	KindSpawn      = 1 // Spawn; descriptors as told there; reply Reply
	KindList       = 2 // no body; one KindProc per process, then Reply with the monitor's PID
	KindReopenLog  = 3 // Target; reply Reply
	KindAttach     = 4 // Target; descriptors: stdout, stderr; reply Reply with stdin
	KindCloseStdin = 5 // Target; reply Reply
	KindForget     = 6 // Target; reply Reply
	KindShutdown   = 7 // no body; the monitor ends without a reply

	KindReply = 64 // Reply
	KindProc  = 65 // Proc; descriptor: pidfd while it lives
	KindExit  = 66 // Exit; sent once per process, to the agent connected then
)

// Packet is the header before every body.
type Packet struct {
	Kind uint32
	Seq  uint32
	Body []byte
}

// Marshal returns the packet's bytes: version, kind, sequence, body.
func (p Packet) Marshal() []byte {
	c := &Coder{b: make([]byte, 0, 12+len(p.Body))}
	v := uint32(Version)
	c.U32(&v)
	c.U32(&p.Kind)
	c.U32(&p.Seq)
	return append(c.b, p.Body...)
}

// Unmarshal reads a packet; Body shares b's memory.
func Unmarshal(b []byte) (Packet, error) {
	c := &Coder{b: b, decode: true}
	var v uint32
	var p Packet
	c.U32(&v)
	c.U32(&p.Kind)
	c.U32(&p.Seq)
	if c.err == nil && v != Version {
		c.err = Error("wire: unknown protocol version")
	}
	p.Body = c.b
	return p, c.err
}

// Spawn starts a process. Descriptors, in order: the helper (sealed memfd), the file
// with Init, then a PID namespace if JoinPID, then stdin, stdout and stderr if
// Stdio, then the extra descriptors Init's indices mean.
type Spawn struct {
	ID      string // unique among this monitor's processes
	Exec    bool   // an exec: no log, no records
	Dir     string // folder for the start and exit records
	LogPath string // CRI log file; empty: output is read and dropped
	TTY     bool
	Stdin   bool // keep an open stdin
	NewPID  bool // new PID namespace
	NewNS   bool // new mount namespace
	JoinPID bool
	Stdio   bool
	NewIPC  bool
}

// Walk implements Walker.
func (s *Spawn) Walk(c *Coder) {
	c.Str(&s.ID)
	c.Bool(&s.Exec)
	c.Str(&s.Dir)
	c.Str(&s.LogPath)
	c.Bool(&s.TTY)
	c.Bool(&s.Stdin)
	c.Bool(&s.NewPID)
	c.Bool(&s.NewNS)
	c.Bool(&s.JoinPID)
	c.Bool(&s.Stdio)
	c.Bool(&s.NewIPC)
}

// Target names a process.
type Target struct{ ID string }

// Walk implements Walker.
func (t *Target) Walk(c *Coder) { c.Str(&t.ID) }

// Reply answers a request. For a Spawn its descriptors are the pidfd and, with a
// terminal in an exec, the terminal's master.
type Reply struct {
	Err       string
	PID       int
	StartTime uint64 // clock ticks since boot, from /proc/<pid>/stat
	StartedAt int64  // Unix nanoseconds
}

// Walk implements Walker.
func (r *Reply) Walk(c *Coder) {
	c.Str(&r.Err)
	c.Int(&r.PID)
	c.U64(&r.StartTime)
	c.I64(&r.StartedAt)
}

// Proc is one process a monitor knows.
type Proc struct {
	ID        string
	Exec      bool
	PID       int
	StartTime uint64
	StartedAt int64
	Exited    bool
	Code      int
	ExitedAt  int64
}

// Walk implements Walker.
func (p *Proc) Walk(c *Coder) {
	c.Str(&p.ID)
	c.Bool(&p.Exec)
	c.Int(&p.PID)
	c.U64(&p.StartTime)
	c.I64(&p.StartedAt)
	c.Bool(&p.Exited)
	c.Int(&p.Code)
	c.I64(&p.ExitedAt)
}

// Names of the records a monitor writes into Spawn.Dir, each a marshalled Proc.
const (
	StartRecord = "started"
	ExitRecord  = "exited"
)
