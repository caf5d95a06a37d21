// Native sidecars: init containers with restartPolicy Always, which keep running beside the pod's other containers.

package kuberuntime

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	proberesults "k8s.io/kubernetes/pkg/kubelet/prober/results"
)

func isSidecar(c *v1.Container) bool { return c.RestartPolicy == string(v1.RestartPolicyAlways) }

// regularFinished tells that no regular container of the pod will run again.
func regularFinished(pod *v1.Pod, podStatus *kubecontainer.PodStatus) bool {
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		s := podStatus.FindContainerStatusByName(c.Name)
		if s == nil || s.State != kubecontainer.ContainerStateExited || kubecontainer.ShouldContainerBeRestarted(c, pod, podStatus) {
			return false
		}
	}
	return true
}

// nextInitContainer is findNextInitContainerToRun for pods with sidecars among their init containers.
func (m *kubeGenericRuntimeManager) nextInitContainer(pod *v1.Pod, podStatus *kubecontainer.PodStatus) (*kubecontainer.Status, *v1.Container, bool) {
	init := pod.Spec.InitContainers
	last, sidecars := -1, false // last: plain init containers before it are complete
	for i := range init {
		if isSidecar(&init[i]) {
			sidecars = true
		} else if podStatus.FindContainerStatusByName(init[i].Name) != nil {
			last = i
		}
	}
	if !sidecars {
		return findNextInitContainerToRun(pod, podStatus)
	}
	finished := regularFinished(pod, podStatus)
	for i := range init {
		c := &init[i]
		s := podStatus.FindContainerStatusByName(c.Name)
		switch {
		case isSidecar(c) && s != nil && s.State == kubecontainer.ContainerStateRunning:
			if c.StartupProbe != nil && !finished {
				if r, ok := m.startupManager.Get(s.ID); !ok || r != proberesults.Success {
					return nil, nil, false
				}
			}
		case isSidecar(c):
			if !finished {
				return nil, c, false
			}
		case i < last:
		case s == nil:
			return nil, c, false
		case isInitContainerFailed(s):
			return s, c, false
		case s.State == kubecontainer.ContainerStateRunning:
			return nil, nil, false
		}
	}
	return nil, nil, true
}

// sidecarsToKill adds the sidecars that failed a liveness or startup probe.
func (m *kubeGenericRuntimeManager) sidecarsToKill(pod *v1.Pod, podStatus *kubecontainer.PodStatus, kill map[kubecontainer.ContainerID]containerToKillInfo) {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		s := podStatus.FindContainerStatusByName(c.Name)
		if !isSidecar(c) || s == nil || s.State != kubecontainer.ContainerStateRunning {
			continue
		}
		live, ok1 := m.livenessManager.Get(s.ID)
		start, ok2 := m.startupManager.Get(s.ID)
		if (ok1 && live == proberesults.Failure) || (ok2 && start == proberesults.Failure) {
			kill[s.ID] = containerToKillInfo{name: c.Name, container: c, message: fmt.Sprintf("Sidecar %s failed its probe, will be restarted", c.Name)}
		}
	}
}

// splitSidecars takes the running sidecars, in reverse order of start, out of the pod's running containers.
func splitSidecars(pod *v1.Pod, all []*kubecontainer.Container) (regular, sidecars []*kubecontainer.Container) {
	side := map[string]bool{}
	if pod != nil {
		for i := len(pod.Spec.InitContainers) - 1; i >= 0; i-- {
			if c := &pod.Spec.InitContainers[i]; isSidecar(c) {
				side[c.Name] = true
				for _, r := range all {
					if r.Name == c.Name {
						sidecars = append(sidecars, r)
					}
				}
			}
		}
	}
	for _, r := range all {
		if !side[r.Name] {
			regular = append(regular, r)
		}
	}
	return
}

// graceLeft is what remains of the pod's grace period, at least two seconds.
func graceLeft(pod *v1.Pod, override *int64, start time.Time) *int64 {
	g := int64(2)
	switch {
	case override != nil:
		g = *override
	case pod.DeletionGracePeriodSeconds != nil:
		g = *pod.DeletionGracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		g = *pod.Spec.TerminationGracePeriodSeconds
	}
	if g -= int64(time.Since(start).Seconds()); g < 2 {
		g = 2
	}
	return &g
}
