package core

// Names of the plugins, upstream's.
const (
	NodeName           = "NodeName"
	NodeUnschedulable  = "NodeUnschedulable"
	TaintToleration    = "TaintToleration"
	NodeAffinity       = "NodeAffinity"
	NodePorts          = "NodePorts"
	NodeResourcesFit   = "NodeResourcesFit"
	BalancedAllocation = "NodeResourcesBalancedAllocation"
	VolumeBinding      = "VolumeBinding"
	PodTopologySpread  = "PodTopologySpread"
	InterPodAffinity   = "InterPodAffinity"
	ImageLocality      = "ImageLocality"
	SchedulingGates    = "SchedulingGates"
)

// filter runs upstream's filters in upstream's order.
func (s *search) filter() {
	if s.filterEach(); len(s.rows) > 0 {
		s.filterTogether()
	}
}

// filterEach runs the filters that look at one node at a time. A filter that
// can refuse the pod outright does so before any node is looked at.
func (s *search) filterEach() {
	for _, prepare := range []func(*search){(*search).prepareNodeAffinity, (*search).prepareVolumes} {
		if prepare(s); s.pre != nil {
			return
		}
	}
	for _, run := range []func(*search){
		(*search).filterNamed,
		(*search).filterNodeName,
		(*search).filterUnschedulable,
		(*search).filterTaints,
		(*search).filterNodeAffinity,
		(*search).filterPorts,
		(*search).filterResources,
		(*search).filterVolumes,
	} {
		if run(s); len(s.rows) == 0 {
			return
		}
	}
}

// filterTogether runs the filters for which nodes depend on each other.
func (s *search) filterTogether() {
	if s.filterSpread(); len(s.rows) > 0 {
		s.filterInterPod()
	}
}

// Weights of the scores, upstream's defaults.
const (
	weightTaints   = 3
	weightAffinity = 2
	weightFit      = 1
	weightSpread   = 2
	weightInterPod = 2
	weightBalanced = 1
	weightImages   = 1

	maxScore = 100
)

// scoreEach runs the scores that look at one node at a time.
func (s *search) scoreEach() {
	s.scoreResources()
	s.scoreImages()
}

// score adds the scores that depend on which nodes there are to choose from to
// those of the pod's class.
func (s *search) score(cl *class) {
	s.scores = zeros(&s.c.scratch.scores, len(s.rows))
	s.scratch = zeros(&s.c.scratch.scaled, len(s.rows))
	for i, row := range s.rows {
		s.scores[i] = cl.scores[row]
	}
	s.scoreTaints()
	s.scoreNodeAffinity()
	s.scoreSpread()
	s.scoreInterPod()
}

// addScaled adds weight times the scratch scores, scaled so that the highest
// becomes maxScore; reverse turns the order around.
func (s *search) addScaled(weight int64, reverse bool) {
	var high int64
	for _, n := range s.scratch {
		high = max(high, n)
	}
	for i, n := range s.scratch {
		if high > 0 {
			n = maxScore * n / high
		}
		if reverse {
			n = maxScore - n
		}
		s.scores[i] += weight * n
	}
}
