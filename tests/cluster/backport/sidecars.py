"""Native sidecars: kept by the API server, accepted with probes and hooks, and run by the kubelet: started in order, held
back by their startup probe, probed, restarted, stopped after the pod's other containers, never in the way of a Job's end."""
import re

RUNTIME = 'pkg/kubelet/kuberuntime/'
RESTART_POLICY = '''	// restartPolicy of a single (init) container.
	// +optional
	RestartPolicy string `json:"restartPolicy,omitempty" protobuf:"bytes,24,opt,name=restartPolicy"`
'''
STOP_SIDECARS = '''	for _, container := range sidecars {
		killContainerResult := kubecontainer.NewSyncResult(kubecontainer.KillContainer, container.Name)
		if err := m.killContainer(pod, container.ID, container.Name, "", graceLeft(pod, gracePeriodOverride, start)); err != nil {
			killContainerResult.Fail(kubecontainer.ErrKillContainer, err.Error())
		}
		containerResults <- killContainerResult
	}
'''
# A sidecar is pending only until it was started once.
PENDING = '''		if container.RestartPolicy == "Always" {
			if !ok || (containerStatus.State.Running == nil && containerStatus.State.Terminated == nil && containerStatus.LastTerminationState.Terminated == nil) {
				pendingInitialization++
			}
			continue
		}
'''
# A sidecar is initialized once it has started, and its readiness counts for the pod's.
READINESS = '''	readySpec, readyStatuses := spec.DeepCopy(), append([]v1.ContainerStatus{}, s.ContainerStatuses...)
	initStatuses := append([]v1.ContainerStatus{}, s.InitContainerStatuses...)
	for _, c := range spec.InitContainers {
		for j := range s.InitContainerStatuses {
			if c.RestartPolicy != "Always" || c.Name != s.InitContainerStatuses[j].Name {
				continue
			}
			t := v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{s.InitContainerStatuses[j]}}
			kl.probeManager.UpdatePodStatus(pod.UID, &t)
			x := t.ContainerStatuses[0]
			s.InitContainerStatuses[j] = x
			readySpec.Containers, readyStatuses = append(readySpec.Containers, c), append(readyStatuses, x)
			initStatuses[j].Ready = (x.Started != nil && *x.Started) || x.State.Terminated != nil
		}
	}
'''
PROBED = '''
// probed containers: the regular ones and the sidecars.
func probed(pod *v1.Pod) []v1.Container {
	all := append([]v1.Container{}, pod.Spec.Containers...)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy == "Always" {
			all = append(all, c)
		}
	}
	return all
}
'''


def apply(tree):
    api(tree)
    run(tree)
    status(tree)
    probes(tree)


def api(tree):
    """The field, in both forms of a container, and what is allowed beside it."""
    tree.after('staging/src/k8s.io/api/core/v1/types.go',
               '\tTTY bool `json:"tty,omitempty" protobuf:"varint,18,opt,name=tty"`\n', RESTART_POLICY, times=2)
    internal = 'pkg/apis/core/types.go'
    text, found = re.subn(r'(\tStdinOnce bool\n(?:\t//[^\n]*\n)*\tTTY bool\n)', r'\1\tRestartPolicy string\n', tree.read(internal))
    if found != 2:
        raise SystemExit(f'{internal}: expected two kinds of container, found {found}')
    tree.write(internal, text)
    conversion = 'pkg/apis/core/v1/zz_generated.conversion.go'
    mark = '\tout.Stdin = in.Stdin\n\tout.StdinOnce = in.StdinOnce\n\tout.TTY = in.TTY\n'
    tree.after(conversion, mark, '\tout.RestartPolicy = in.RestartPolicy\n', times=tree.read(conversion).count(mark) or 1)
    for field in ('Lifecycle', 'LivenessProbe', 'ReadinessProbe', 'StartupProbe'):
        check = f'\t\tif ctr.{field} != nil'
        report = f' {{\n\t\t\tallErrs = append(allErrs, field.Invalid(idxPath.Child("{field[0].lower() + field[1:]}"), ctr.{field}, "must not be set'
        tree.replace('pkg/apis/core/validation/validation.go', check + report + ' for init containers"))',
                     check + ' && ctr.RestartPolicy != "Always"' + report + ' for init containers"))')


def run(tree):
    """Start, restart and stop (the decisions are in sidecar.go)."""
    tree.add('sidecar.go', RUNTIME + 'sidecar.go')
    manager = RUNTIME + 'kuberuntime_manager.go'
    tree.replace(manager, ':= findNextInitContainerToRun(pod, podStatus)', ':= m.nextInitContainer(pod, podStatus)', times=2)
    tree.before(manager, '\t// Check initialization progress.\n', '\tm.sidecarsToKill(pod, podStatus, changes.ContainersToKill)\n')
    container = RUNTIME + 'kuberuntime_container.go'
    tree.replace(container, '\twg.Add(len(runningPod.Containers))\n\tfor _, container := range runningPod.Containers {\n',
                 '\tregular, sidecars := splitSidecars(pod, runningPod.Containers)\n\tstart := time.Now()\n'
                 '\twg.Add(len(regular))\n\tfor _, container := range regular {\n')
    tree.replace(container, '\twg.Wait()\n\tclose(containerResults)\n', '\twg.Wait()\n' + STOP_SIDECARS + '\tclose(containerResults)\n')


def status(tree):
    pods = 'pkg/kubelet/kubelet_pods.go'
    found = '\t\tcontainerStatus, ok := podutil.GetContainerStatus(info, container.Name)\n'
    pending = '\t\tif !ok {\n\t\t\tpendingInitialization++\n'
    tree.replace(pods, found + pending, found + PENDING + pending)
    tree.after(pods, '\tkl.probeManager.UpdatePodStatus(pod.UID, s)\n', READINESS)
    for condition, old, new in [
            ('PodInitialized', 'spec, s.InitContainerStatuses', 'spec, initStatuses'),
            ('PodReady', 'spec, s.Conditions, s.ContainerStatuses', 'readySpec, s.Conditions, readyStatuses'),
            ('ContainersReady', 'spec, s.ContainerStatuses', 'readySpec, readyStatuses')]:
        tree.replace(pods, f'status.Generate{condition}Condition({old}, s.Phase)', f'status.Generate{condition}Condition({new}, s.Phase)')


def probes(tree):
    manager = 'pkg/kubelet/prober/prober_manager.go'
    tree.replace(manager, 'range pod.Spec.Containers {', 'range probed(pod) {', times=2)
    tree.write(manager, tree.read(manager) + PROBED)
    tree.after('pkg/kubelet/prober/worker.go', '\tc, ok := podutil.GetContainerStatus(status.ContainerStatuses, w.container.Name)\n',
               '\tif !ok {\n\t\tc, ok = podutil.GetContainerStatus(status.InitContainerStatuses, w.container.Name)\n\t}\n')
