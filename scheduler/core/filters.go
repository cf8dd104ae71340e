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

// filter runs upstream's filters in upstream's order. A filter that can refuse
// the pod outright does so before any node is looked at.
func (s *search) filter() {
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
		(*search).filterSpread,
		(*search).filterInterPod,
	} {
		if run(s); len(s.rows) == 0 {
			return
		}
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

// score runs upstream's scores over the rows that passed.
func (s *search) score() {
	s.scores = zeros(&s.c.scratch.scores, len(s.rows))
	s.scratch = zeros(&s.c.scratch.scaled, len(s.rows))
	s.scoreTaints()
	s.scoreNodeAffinity()
	s.scoreResources()
	s.scoreSpread()
	s.scoreInterPod()
	s.scoreImages()
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
