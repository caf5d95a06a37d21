#!/usr/bin/env python3
"""apply.py SOURCES: brings to Kubernetes 1.20 what a mesh of today needs of its server.

 - discovery.k8s.io/v1, beside v1beta1 (discovery.py)
 - native sidecars: init containers with restartPolicy Always (sidecars.py)
 - the label kubernetes.io/metadata.name on every namespace (here)
 - deleted pods that go at once: this kubelet may wait for a collection of dead containers, each minute, and for the
   sending of all statuses, each ten seconds (here)
 - schemas of CustomResourceDefinitions in which an empty text is a text: built with Go 1.18 or later, this server takes it for null (here)

Every edit names the text that it expects, and fails where that is not there."""
import os
import sys

import discovery
import sidecars

NAMESPACE_LABEL = '''func (namespaceStrategy) Canonicalize(obj runtime.Object) {
	if ns, ok := obj.(*api.Namespace); ok && ns.Name != "" {
		if ns.Labels == nil {
			ns.Labels = map[string]string{}
		}
		ns.Labels["kubernetes.io/metadata.name"] = ns.Name
	}
'''


class Tree:
    """The sources to edit."""

    def __init__(self, root):
        self.root = root

    def read(self, path):
        with open(os.path.join(self.root, path), encoding='utf-8') as file:
            return file.read()

    def write(self, path, text):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)

    def add(self, name, path):
        """Copies a file that lies beside this one."""
        with open(os.path.join(os.path.dirname(os.path.realpath(__file__)), name), encoding='utf-8') as file:
            self.write(path, file.read())

    def replace(self, path, old, new, times=1):
        """Replaces `old`, which must be there so many times."""
        text = self.read(path)
        found = text.count(old)
        if found != times:
            sys.exit(f'{path}: expected {times} times, found {found} times:\n{old}')
        self.write(path, text.replace(old, new))

    def before(self, path, mark, new):
        """Inserts text before `mark`, which must be there once."""
        self.replace(path, mark, new + mark)

    def after(self, path, mark, new, times=1):
        """Inserts text after each `mark`."""
        self.replace(path, mark, mark + new, times)


def main():
    tree = Tree(sys.argv[1])
    discovery.apply(tree)
    sidecars.apply(tree)
    tree.replace('pkg/registry/core/namespace/strategy.go',
                 'func (namespaceStrategy) Canonicalize(obj runtime.Object) {\n', NAMESPACE_LABEL)
    tree.replace('pkg/kubelet/kubelet.go', 'ContainerGCPeriod = time.Minute', 'ContainerGCPeriod = 3 * time.Second')
    tree.replace('pkg/kubelet/status/status_manager.go', 'const syncPeriod = 10 * time.Second', 'const syncPeriod = 2 * time.Second')
    tree.replace('vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go',
                 'if data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data)) {', 'if data == nil {')


main()
