package core

import (
	"math"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// What a node can lack, as bits; lacking has the status of each combination.
const (
	lacksPods = 1 << iota
	lacksCPU
	lacksMemory
	lacksEphemeral
	lacksHopeless // more is asked for than the empty node has
	lacksEnd
)

var lackReasons = []string{"Too many pods", "Insufficient cpu", "Insufficient memory", "Insufficient ephemeral-storage"}

var lacking = func() (all [lacksEnd]*status) {
	for mask := range all {
		st := &status{plugin: NodeResourcesFit, unresolvable: mask&lacksHopeless != 0}
		for i, reason := range lackReasons {
			if mask>>i&1 == 1 {
				st.reasons = append(st.reasons, reason)
			}
		}
		all[mask] = st
	}
	return all
}()

// scalarNeed is an extended resource or huge pages the pod asks for.
type scalarNeed struct {
	name v1.ResourceName
	want int64
	col  *resourceColumn // nil: no node has it
}

// filterResources keeps the nodes with enough of everything the pod asks for.
func (s *search) filterResources() {
	c, req := s.c, &s.pod.req
	var needs []scalarNeed
	for name, want := range req.scalars {
		if want > 0 {
			needs = append(needs, scalarNeed{name, want, c.scalars[name]})
		}
	}
	slices.SortFunc(needs, func(a, b scalarNeed) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	s.keep(func(row int32) *status {
		mask := 0
		if c.podSlots.used[row]+1 > c.podSlots.total[row] {
			mask |= lacksPods
		}
		mask |= lacks(&c.cpu, row, req.cpu, lacksCPU)
		mask |= lacks(&c.memory, row, req.memory, lacksMemory)
		mask |= lacks(&c.ephemeral, row, req.ephemeral, lacksEphemeral)
		if len(needs) > 0 {
			return lacksScalars(row, needs, mask)
		}
		if mask == 0 {
			return nil
		}
		return lacking[mask]
	})
}

func lacks(col *resourceColumn, row int32, want int64, bit int) int {
	if want == 0 || want <= col.total[row]-col.used[row] {
		return 0
	}
	if want > col.total[row] {
		return bit | lacksHopeless
	}
	return bit
}

func lacksScalars(row int32, needs []scalarNeed, mask int) *status {
	st := *lacking[mask]
	st.reasons = slices.Clone(st.reasons)
	for _, n := range needs {
		var free, total int64
		if n.col != nil {
			total = n.col.total[row]
			free = total - n.col.used[row]
		}
		if n.want > free {
			st.reasons = append(st.reasons, "Insufficient "+string(n.name))
			st.unresolvable = st.unresolvable || n.want > total
		}
	}
	if len(st.reasons) == 0 {
		return nil
	}
	return &st
}

// scoreResources prefers nodes with much free CPU and memory (LeastAllocated),
// and nodes whose CPU and memory fill up evenly (BalancedAllocation).
func (s *search) scoreResources() {
	c, p := s.c, s.pod
	bestEffort := p.req.cpu == 0 && p.req.memory == 0
	for i, row := range s.rows {
		cpuTotal, memTotal := c.cpu.total[row], c.memory.total[row]
		var sum, weights int64
		if cpuTotal > 0 {
			sum += leastAllocated(c.nonzeroCPU[row]+p.nonzero.cpu, cpuTotal)
			weights++
		}
		if memTotal > 0 {
			sum += leastAllocated(c.nonzeroMemory[row]+p.nonzero.memory, memTotal)
			weights++
		}
		if weights > 0 {
			s.scores[i] += weightFit * (sum / weights)
		}
		if !bestEffort {
			with := balance(c.cpu.used[row]+p.req.cpu, cpuTotal, c.memory.used[row]+p.req.memory, memTotal)
			without := balance(c.cpu.used[row], cpuTotal, c.memory.used[row], memTotal)
			s.scores[i] += weightBalanced * (maxScore/2 + (maxScore/2+with-without)/2)
		}
	}
}

func leastAllocated(used, total int64) int64 {
	if used > total {
		return 0
	}
	return (total - used) * maxScore / total
}

// balance is highest when CPU and memory are used to the same fraction.
func balance(cpu, cpuTotal, memory, memoryTotal int64) int64 {
	if cpuTotal == 0 || memoryTotal == 0 {
		return maxScore
	}
	a := min(float64(cpu)/float64(cpuTotal), 1)
	b := min(float64(memory)/float64(memoryTotal), 1)
	return int64((1 - math.Abs((a-b)/2)) * maxScore)
}
