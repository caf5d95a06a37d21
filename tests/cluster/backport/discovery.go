// Package v1 serves discovery.k8s.io/v1 on top of the internal type, which is that of v1beta1: node name and zone are
// entries of its topology there, and fields here.
package v1 // import "k8s.io/kubernetes/pkg/apis/discovery/v1"

import (
	corev1 "k8s.io/api/core/v1"
	api "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/discovery"
)

// SchemeGroupVersion of this version.
var SchemeGroupVersion = api.SchemeGroupVersion

var (
	localSchemeBuilder = &api.SchemeBuilder
	// AddToScheme adds types, defaults and conversions.
	AddToScheme = localSchemeBuilder.AddToScheme
)

const (
	hostKey = "kubernetes.io/hostname"
	zoneKey = "topology.kubernetes.io/zone"
)

func init() { localSchemeBuilder.Register(addDefaults, addConversions) }

func defaultSlice(s *api.EndpointSlice) {
	for i := range s.Ports {
		if s.Ports[i].Name == nil {
			n := ""
			s.Ports[i].Name = &n
		}
		if s.Ports[i].Protocol == nil {
			t := corev1.ProtocolTCP
			s.Ports[i].Protocol = &t
		}
	}
}

func addDefaults(s *runtime.Scheme) error {
	s.AddTypeDefaultingFunc(&api.EndpointSlice{}, func(o interface{}) { defaultSlice(o.(*api.EndpointSlice)) })
	s.AddTypeDefaultingFunc(&api.EndpointSliceList{}, func(o interface{}) {
		l := o.(*api.EndpointSliceList)
		for i := range l.Items {
			defaultSlice(&l.Items[i])
		}
	})
	return nil
}

func fromV1(in *api.EndpointSlice, out *discovery.EndpointSlice) {
	in = in.DeepCopy()
	out.ObjectMeta = in.ObjectMeta
	out.AddressType = discovery.AddressType(in.AddressType)
	out.Endpoints = nil
	for i := range in.Endpoints {
		e := &in.Endpoints[i]
		o := discovery.Endpoint{Addresses: e.Addresses, Conditions: discovery.EndpointConditions(e.Conditions), Hostname: e.Hostname, Topology: e.DeprecatedTopology, NodeName: e.NodeName}
		if e.TargetRef != nil {
			r := core.ObjectReference(*e.TargetRef)
			o.TargetRef = &r
		}
		set := func(k, v string) {
			if o.Topology == nil {
				o.Topology = map[string]string{}
			}
			o.Topology[k] = v
		}
		if e.NodeName != nil {
			set(hostKey, *e.NodeName)
		}
		if e.Zone != "" {
			set(zoneKey, e.Zone)
		}
		out.Endpoints = append(out.Endpoints, o)
	}
	out.Ports = nil
	for i := range in.Ports {
		q := &in.Ports[i]
		out.Ports = append(out.Ports, discovery.EndpointPort{Name: q.Name, Protocol: (*core.Protocol)(q.Protocol), Port: q.Port, AppProtocol: q.AppProtocol})
	}
}

func toV1(in *discovery.EndpointSlice, out *api.EndpointSlice) {
	in = in.DeepCopy()
	out.ObjectMeta = in.ObjectMeta
	out.AddressType = api.AddressType(in.AddressType)
	out.Endpoints = []api.Endpoint{}
	for i := range in.Endpoints {
		e := &in.Endpoints[i]
		o := api.Endpoint{Addresses: e.Addresses, Conditions: api.EndpointConditions(e.Conditions), Hostname: e.Hostname, NodeName: e.NodeName}
		if e.TargetRef != nil {
			r := corev1.ObjectReference(*e.TargetRef)
			o.TargetRef = &r
		}
		for k, v := range e.Topology {
			switch {
			case k == zoneKey:
				o.Zone = v
			case k == hostKey && o.NodeName == nil:
				n := v
				o.NodeName = &n
			case k == hostKey && *o.NodeName == v:
			default:
				if o.DeprecatedTopology == nil {
					o.DeprecatedTopology = map[string]string{}
				}
				o.DeprecatedTopology[k] = v
			}
		}
		out.Endpoints = append(out.Endpoints, o)
	}
	out.Ports = []api.EndpointPort{}
	for i := range in.Ports {
		q := &in.Ports[i]
		out.Ports = append(out.Ports, api.EndpointPort{Name: q.Name, Protocol: (*corev1.Protocol)(q.Protocol), Port: q.Port, AppProtocol: q.AppProtocol})
	}
}

func addConversions(s *runtime.Scheme) error {
	for _, c := range []struct {
		a, b interface{}
		f    conversion.ConversionFunc
	}{
		{(*api.EndpointSlice)(nil), (*discovery.EndpointSlice)(nil), func(a, b interface{}, _ conversion.Scope) error {
			fromV1(a.(*api.EndpointSlice), b.(*discovery.EndpointSlice))
			return nil
		}},
		{(*discovery.EndpointSlice)(nil), (*api.EndpointSlice)(nil), func(a, b interface{}, _ conversion.Scope) error {
			toV1(a.(*discovery.EndpointSlice), b.(*api.EndpointSlice))
			return nil
		}},
		{(*api.EndpointSliceList)(nil), (*discovery.EndpointSliceList)(nil), func(a, b interface{}, _ conversion.Scope) error {
			in, out := a.(*api.EndpointSliceList), b.(*discovery.EndpointSliceList)
			out.ListMeta = in.ListMeta
			out.Items = make([]discovery.EndpointSlice, len(in.Items))
			for i := range in.Items {
				fromV1(&in.Items[i], &out.Items[i])
			}
			return nil
		}},
		{(*discovery.EndpointSliceList)(nil), (*api.EndpointSliceList)(nil), func(a, b interface{}, _ conversion.Scope) error {
			in, out := a.(*discovery.EndpointSliceList), b.(*api.EndpointSliceList)
			out.ListMeta = in.ListMeta
			out.Items = make([]api.EndpointSlice, len(in.Items))
			for i := range in.Items {
				toV1(&in.Items[i], &out.Items[i])
			}
			return nil
		}},
	} {
		if err := s.AddGeneratedConversionFunc(c.a, c.b, c.f); err != nil {
			return err
		}
	}
	return nil
}
