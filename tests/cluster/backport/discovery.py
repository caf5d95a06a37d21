"""discovery.k8s.io/v1: its types are v1beta1's with three differences; what is stored stays v1beta1."""
import re

API = 'staging/src/k8s.io/api/discovery/'
FILES = ('doc.go', 'register.go', 'types.go', 'well_known_labels.go', 'zz_generated.deepcopy.go')

ZONE_FIELD = '''
	// zone is the name of the zone this endpoint exists in.
	// +optional
	Zone string `json:"zone,omitempty" protobuf:"bytes,7,opt,name=zone"`
'''
# In protobuf, which the namespace controller speaks, the zone is field 7: tag (7 << 3 | 2) = 0x3a.
ZONE_MARSHAL = '''	if m.Zone != "" {
		i -= len(m.Zone)
		copy(dAtA[i:], m.Zone)
		i = encodeVarintGenerated(dAtA, i, uint64(len(m.Zone)))
		i--
		dAtA[i] = 0x3a
	}
'''
ZONE_SIZE = '''	if m.Zone != "" {
		l = len(m.Zone)
		n += 1 + l + sovGenerated(uint64(l))
	}
'''
STORAGE = '''	if apiResourceConfigSource.VersionEnabled(discoveryv1.SchemeGroupVersion) {
		storageMap, err := p.v1beta1Storage(apiResourceConfigSource, restOptionsGetter)
		if err != nil {
			return genericapiserver.APIGroupInfo{}, false, err
		}
		apiGroupInfo.VersionedResourcesStorageMap[discoveryv1.SchemeGroupVersion.Version] = storageMap
	}

'''


def apply(tree):
    for name in FILES:
        tree.write(API + 'v1/' + name, types(name, tree.read(API + 'v1beta1/' + name)))
    tree.write(API + 'v1/generated.pb.go', protobuf(tree.read(API + 'v1beta1/generated.pb.go')))
    tree.add('discovery.go', 'pkg/apis/discovery/v1/register.go')

    install = 'pkg/apis/discovery/install/install.go'
    tree.before(install, '\t"k8s.io/kubernetes/pkg/apis/discovery/v1alpha1"\n', '\tdiscoveryv1 "k8s.io/kubernetes/pkg/apis/discovery/v1"\n')
    tree.after(install, '\tutilruntime.Must(v1beta1.AddToScheme(scheme))\n', '\tutilruntime.Must(discoveryv1.AddToScheme(scheme))\n')
    tree.replace(install, 'v1beta1.SchemeGroupVersion, v1alpha1', 'v1beta1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, v1alpha1')
    storage = 'pkg/registry/discovery/rest/storage_discovery.go'
    tree.before(storage, '\tdiscoveryv1alpha1 "k8s', '\tdiscoveryv1 "k8s.io/api/discovery/v1"\n')
    tree.before(storage, '\treturn apiGroupInfo, true, nil\n', STORAGE)
    instance = 'pkg/controlplane/instance.go'
    tree.before(instance, '\tdiscoveryv1beta1 "k8s.io/api', '\tdiscoveryv1 "k8s.io/api/discovery/v1"\n')
    tree.before(instance, '\t\tdiscoveryv1beta1.SchemeGroupVersion,\n', '\t\tdiscoveryv1.SchemeGroupVersion,\n')
    tree.before('cmd/kube-apiserver/app/aggregator.go', '\t{Group: "discovery.k8s.io", Version: "v1beta1"}:',
                '\t{Group: "discovery.k8s.io", Version: "v1"}:                   {group: 16200, version: 15},\n')


def renamed(text):
    text = text.replace('discovery/v1beta1', 'discovery/v1').replace('discovery.v1beta1.', 'discovery.v1.')
    return text.replace('package v1beta1', 'package v1').replace('Version: "v1beta1"', 'Version: "v1"')


def types(name, text):
    text = re.sub(r'.*prerelease-lifecycle-gen.*\n', '', renamed(text))
    if name == 'types.go':
        text = once(text, 'Topology map[string]string `json:"topology,omitempty"',
                    'DeprecatedTopology map[string]string `json:"deprecatedTopology,omitempty"')
        mark = 'protobuf:"bytes,6,opt,name=nodeName"`\n'
        text = once(text, mark, mark + ZONE_FIELD)
    if name == 'zz_generated.deepcopy.go':
        text = re.sub(r'\bTopology\b', 'DeprecatedTopology', text)
    return text


def protobuf(text):
    text = renamed(text).replace('m.Topology', 'm.DeprecatedTopology').replace('this.Topology', 'this.DeprecatedTopology')
    text = text.replace('`Topology:', '`DeprecatedTopology:')
    text = before_node_name(text, 'func (m *Endpoint) MarshalToSizedBuffer(', ZONE_MARSHAL)
    text = before_node_name(text, 'func (m *Endpoint) Size() (n int)', ZONE_SIZE)
    # Reading the zone is reading the node name, but for its number and that it is no pointer.
    start = text.index('\t\tcase 6:', text.index('func (m *Endpoint) Unmarshal('))
    end = text.index('\t\tdefault:', start)
    case = once(text[start:end].replace('case 6:', 'case 7:'), 'NodeName = &s', 'Zone = s').replace('NodeName', 'Zone')
    return text[:end] + case + text[end:]


def before_node_name(text, function, new):
    at = text.index('\tif m.NodeName != nil {', text.index(function))
    return text[:at] + new + text[at:]


def once(text, old, new):
    if text.count(old) != 1:
        raise SystemExit(f'expected once, found {text.count(old)} times:\n{old}')
    return text.replace(old, new)
