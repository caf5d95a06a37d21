//! The mesh as Kubernetes objects, for the directory that the control plane follows. Written as JSON, which it reads too.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use weft_core::Namespace;
use weft_core::authorization::Posture;
use weft_core::egress::EgressDefault;
use weft_core::policy::MtlsMode;
use weft_core::wellknown::{ANNOTATION_DEFAULT_POLICY, ANNOTATION_EGRESS, ANNOTATION_MTLS, SIDECAR_CONTAINER};

use crate::mesh_file::{Mesh, NamespaceDefaults, Service, TargetPort, Workload};
use crate::plan::{Plan, Replica};

/// An object, and the file that it goes into.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) file: String,
    pub(crate) object: Value,
}

/// Everything that does not change while the mesh runs.
pub(crate) fn fixed(mesh: &Mesh, plan: &Plan) -> Vec<Manifest> {
    let namespaces = mesh.namespaces.iter().map(|(name, own)| namespace(name, *own));
    let services = mesh.services.iter().zip(&plan.services).map(|(s, address)| service(s, address.map(IpAddr::V4)));
    namespaces.chain(services).collect()
}

fn namespace(name: &Namespace, own: NamespaceDefaults) -> Manifest {
    let mut annotations = annotations(own.mtls);
    put(&mut annotations, ANNOTATION_DEFAULT_POLICY, own.default_policy.map(Posture::as_str));
    put(&mut annotations, ANNOTATION_EGRESS, own.egress.map(EgressDefault::as_str));
    let object = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name.as_str(), "annotations": annotations},
    });
    Manifest { file: format!("namespace-{name}.json"), object }
}

fn annotations(mtls: Option<MtlsMode>) -> Map<String, Value> {
    mtls.iter().map(|mode| (ANNOTATION_MTLS.to_owned(), Value::from(mode.to_string()))).collect()
}

fn service(service: &Service, address: Option<IpAddr>) -> Manifest {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|p| {
            let target = match &p.target {
                TargetPort::Number(number) => Value::from(*number),
                TargetPort::Name(name) => Value::from(name.as_str()),
            };
            let mut port = Map::from_iter([("port".to_owned(), Value::from(p.port)), ("targetPort".to_owned(), target)]);
            put(&mut port, "name", p.name.as_deref());
            put(&mut port, "appProtocol", p.protocol.as_deref());
            Value::Object(port)
        })
        .collect();
    let cluster_ip = address.map_or_else(|| "None".to_owned(), |a| a.to_string());
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": service.namespace.as_str(), "name": service.name.as_str()},
        "spec": {"clusterIP": cluster_ip, "selector": service.selector, "ports": ports},
    });
    Manifest { file: format!("service-{}-{}.json", service.namespace, service.name), object }
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), Value::from(value));
    }
}

/// A replica as a pod. `ipv6` says whether its second address is in use.
pub(crate) fn pod(workload: &Workload, replica: &Replica, ready: bool, ipv6: bool) -> Manifest {
    let ports: Vec<Value> = workload
        .ports
        .iter()
        .map(|p| {
            let mut port = Map::from_iter([("containerPort".to_owned(), Value::from(p.port))]);
            put(&mut port, "name", p.name.as_deref());
            Value::Object(port)
        })
        .collect();
    let mut containers = vec![json!({"name": "app", "ports": ports})];
    if workload.sidecar {
        containers.push(json!({"name": SIDECAR_CONTAINER}));
    }
    let addresses: Vec<Value> = addresses(replica, ipv6).iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": workload.namespace.as_str(),
            "name": replica.pod,
            "labels": workload.labels,
            "annotations": annotations(workload.mtls),
        },
        "spec": {"serviceAccountName": workload.service_account.as_str(), "containers": containers},
        "status": {
            "phase": "Running",
            "podIP": replica.v4.to_string(),
            "podIPs": addresses,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    });
    Manifest { file: format!("pod-{}-{}.json", workload.namespace, replica.pod), object }
}

/// The addresses of a replica that are in use.
pub(crate) fn addresses(replica: &Replica, ipv6: bool) -> Vec<IpAddr> {
    let mut list = vec![IpAddr::V4(replica.v4)];
    if ipv6 {
        list.push(IpAddr::V6(replica.v6));
    }
    list
}

/// The directory that the control plane follows.
#[derive(Debug, Clone)]
pub(crate) struct ManifestDir(PathBuf);

impl ManifestDir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts an object in its place, at once and whole.
    pub(crate) fn put(&self, manifest: &Manifest) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(&manifest.object)?;
        text.push('\n');
        self.put_text(Path::new(&manifest.file), &text)
    }

    /// Puts a text in a file, at once and whole: whoever follows the directory sees the old or the new one.
    pub(crate) fn put_text(&self, file: &Path, text: &str) -> io::Result<()> {
        let path = self.0.join(file);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A name that begins with a dot is not followed.
        let temporary = path.with_file_name(format!(".{name}.new"));
        std::fs::write(&temporary, text)?;
        std::fs::rename(&temporary, &path)
    }

    pub(crate) fn remove(&self, file: &Path) -> io::Result<()> {
        std::fs::remove_file(self.0.join(file))
    }
}

#[cfg(test)]
mod tests {
    use weft_control_plane::objects::Object;
    use weft_control_plane::watch::parse;

    use super::*;

    const TEXT: &str = "
namespaces: {shop: {mtls: strict, defaultPolicy: deny}}
workloads:
- name: web
  namespace: shop
  command: [x]
  replicas: 2
  mtls: permissive
  ports: [{name: http, port: 8080, protocol: http}, {port: 9000}]
- {name: old, command: [x], sidecar: false}
services:
- {name: web, namespace: shop, ports: [{name: http, port: 80, targetPort: http}, {name: raw, port: 9000, protocol: tcp}]}
- {name: old, headless: true}
";

    fn objects(manifests: &[Manifest]) -> Vec<Object> {
        manifests
            .iter()
            .flat_map(|m| parse::parse(&m.file, &m.object.to_string()).unwrap_or_else(|problem| panic!("{problem}")))
            .collect()
    }

    #[test]
    fn the_control_plane_reads_what_is_written() {
        let mesh = Mesh::read("f", Path::new("/"), TEXT).expect("a good file");
        let plan = Plan::new(&mesh);
        let fixed = objects(&fixed(&mesh, &plan));
        let keys: Vec<String> = fixed.iter().map(|o| o.key().to_string()).collect();
        assert_eq!(keys, ["Namespace default", "Namespace shop", "Service shop/web", "Service default/old"]);
        let [_, Object::Namespace(shop), Object::Service(web), Object::Service(old)] = &fixed[..] else { panic!("{fixed:?}") };
        assert_eq!(shop.annotations.get(ANNOTATION_DEFAULT_POLICY).map(String::as_str), Some("deny"));
        assert_eq!(web.spec.addresses(), ["10.47.240.1".parse::<IpAddr>().expect("a literal")]);
        assert_eq!(web.spec.ports.len(), 2);
        assert!(old.spec.addresses().is_empty());

        let pods: Vec<Manifest> =
            plan.replicas.iter().map(|r| pod(&mesh.workloads[r.workload], r, r.pod == "web-0", true)).collect();
        let pods = objects(&pods);
        let [Object::Pod(web0), Object::Pod(web1), Object::Pod(old0)] = &pods[..] else { panic!("{pods:?}") };
        assert_eq!((web0.ready(), web1.ready()), (true, false));
        assert_eq!((web0.has_sidecar(), old0.has_sidecar()), (true, false));
        assert_eq!(web0.service_account(), "web");
        assert_eq!(web0.port_named("http"), Some(8080));
        assert_eq!(web0.addresses().len(), 2);
        assert!(web.spec.selects(&web0.labels));
        assert_eq!(web0.annotations.get(ANNOTATION_MTLS).map(String::as_str), Some("permissive"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let manifests = ManifestDir::new(dir.path().to_owned());
        manifests.put_text(Path::new("a.json"), "one").expect("written");
        manifests.put_text(Path::new("a.json"), "two").expect("written");
        assert_eq!(std::fs::read_to_string(dir.path().join("a.json")).expect("there"), "two");
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1);
        manifests.remove(Path::new("a.json")).expect("removed");
    }
}
