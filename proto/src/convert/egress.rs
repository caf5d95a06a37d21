//! Where a pod may go outside of the mesh. An external service is encoded by itself, so that all pods that see it share its bytes.

use std::sync::Arc;

use prost::Message as _;
use prost::bytes::Bytes;
use weft_core::authorization::policy::PostureFrom;
use weft_core::egress::{
    Egress, EgressDefault, Endpoint, External, ExternalPort, ExternalProtocol, Origination, Peer, Resolution, Server,
};

use super::traffic::each;
use super::{WireError, address_bytes, address_from, port};
use crate::v1;

/// The most external services that one pod sees.
pub const MAX_EXTERNALS: usize = 1_000;
/// The most bytes that they have together.
pub const MAX_EXTERNAL_BYTES: usize = 1 << 20;

impl From<EgressDefault> for v1::EgressDefault {
    fn from(d: EgressDefault) -> Self {
        match d {
            EgressDefault::Allow => Self::Allow,
            EgressDefault::Deny => Self::Deny,
        }
    }
}

impl From<ExternalProtocol> for v1::ExternalProtocol {
    fn from(p: ExternalProtocol) -> Self {
        match p {
            ExternalProtocol::Http => Self::Http,
            ExternalProtocol::Http2 => Self::Http2,
            ExternalProtocol::Tls => Self::Tls,
            ExternalProtocol::Tcp => Self::Tcp,
        }
    }
}

fn protocol(n: i32) -> Result<ExternalProtocol, WireError> {
    match v1::ExternalProtocol::try_from(n) {
        Ok(v1::ExternalProtocol::Http) => Ok(ExternalProtocol::Http),
        Ok(v1::ExternalProtocol::Http2) => Ok(ExternalProtocol::Http2),
        Ok(v1::ExternalProtocol::Tls) => Ok(ExternalProtocol::Tls),
        Ok(v1::ExternalProtocol::Tcp) => Ok(ExternalProtocol::Tcp),
        Ok(v1::ExternalProtocol::Unspecified) | Err(_) => Err(WireError::Missing("protocol of an external port")),
    }
}

/// An egress without its external services.
pub fn egress_to(default: EgressDefault, from: &PostureFrom) -> v1::Egress {
    let default_namespace = match from {
        PostureFrom::Mesh => String::new(),
        PostureFrom::Namespace(namespace) => namespace.to_string(),
    };
    v1::Egress { otherwise: v1::EgressDefault::from(default).into(), default_namespace, externals: vec![] }
}

/// An external service's bytes.
pub fn external_bytes(external: &v1::ExternalService) -> Bytes {
    external.encode_to_vec().into()
}

impl From<&Egress> for v1::Egress {
    fn from(e: &Egress) -> Self {
        let externals = e.externals.iter().map(|x| external_bytes(&(&**x).into())).collect();
        Self { externals, ..egress_to(e.default, &e.default_from) }
    }
}

impl TryFrom<&v1::Egress> for Egress {
    type Error = WireError;
    fn try_from(e: &v1::Egress) -> Result<Self, WireError> {
        if e.externals.len() > MAX_EXTERNALS
            || e.externals.iter().map(prost::bytes::Bytes::len).sum::<usize>() > MAX_EXTERNAL_BYTES
        {
            return Err(WireError::Range("number or size of external services"));
        }
        let default = match v1::EgressDefault::try_from(e.otherwise) {
            Ok(v1::EgressDefault::Allow) => EgressDefault::Allow,
            Ok(v1::EgressDefault::Deny) => EgressDefault::Deny,
            Ok(v1::EgressDefault::Unspecified) | Err(_) => return Err(WireError::Missing("default of egress")),
        };
        let default_from = match e.default_namespace.as_str() {
            "" => PostureFrom::Mesh,
            namespace => PostureFrom::Namespace(namespace.parse()?),
        };
        let unreadable = |_| WireError::Missing("an external service that can be decoded");
        let read = |bytes: &Bytes| {
            let wire = v1::ExternalService::decode(&bytes[..]).map_err(unreadable)?;
            External::try_from(&wire).map(Arc::new)
        };
        let externals = e.externals.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { default, default_from, externals })
    }
}

impl From<&Origination> for v1::TlsOrigination {
    fn from(o: &Origination) -> Self {
        let (ca, identities) = match &o.server {
            Server::System => (String::new(), vec![]),
            Server::Anchored(ca) => (ca.to_string(), vec![]),
            Server::Peer(peer) => (String::new(), peer.texts()),
        };
        Self { sni: o.sni.as_deref().unwrap_or_default().to_owned(), ca, identities }
    }
}

impl TryFrom<&v1::TlsOrigination> for Origination {
    type Error = WireError;
    fn try_from(o: &v1::TlsOrigination) -> Result<Self, WireError> {
        let server = match (o.ca.as_str(), &o.identities[..]) {
            ("", []) => Server::System,
            (ca, []) => Server::Anchored(ca.into()),
            ("", identities) => Server::Peer(
                Peer::read(identities)
                    .map_err(|_| WireError::Missing("identities of one trust domain in an external service"))?,
            ),
            _ => return Err(WireError::Missing("either anchors or identities of an external service's TLS")),
        };
        Ok(Self { sni: (!o.sni.is_empty()).then(|| o.sni.as_str().into()), server })
    }
}

impl From<&External> for v1::ExternalService {
    fn from(x: &External) -> Self {
        let endpoints = x
            .endpoints()
            .iter()
            .map(|e| v1::ExternalEndpoint { address: address_bytes(e.address).into(), port: e.port.map_or(0, u32::from) });
        Self {
            id: Some((&x.id).into()),
            mesh_wide: x.is_mesh_wide,
            hosts: x.hosts.iter().map(Into::into).collect(),
            ports: x
                .ports
                .iter()
                .map(|p| v1::ExternalPort {
                    port: p.port.into(),
                    target: p.target.into(),
                    protocol: v1::ExternalProtocol::from(p.protocol).into(),
                })
                .collect(),
            origination: x.origination.as_ref().map(Into::into),
            endpoints: endpoints.collect(),
            authorization: Some((&x.authorization).into()),
        }
    }
}

impl TryFrom<&v1::ExternalService> for External {
    type Error = WireError;
    fn try_from(x: &v1::ExternalService) -> Result<Self, WireError> {
        if x.hosts.is_empty() {
            return Err(WireError::Missing("hosts of an external service"));
        }
        if x.ports.is_empty() {
            return Err(WireError::Missing("ports of an external service"));
        }
        let ports = x.ports.iter().map(|p| {
            Ok(ExternalPort {
                port: port(p.port, "external port")?,
                target: port(p.target, "target of an external port")?,
                protocol: protocol(p.protocol)?,
            })
        });
        let endpoints = x.endpoints.iter().map(|e| {
            let port = (e.port != 0).then(|| port(e.port, "port of an external endpoint")).transpose()?;
            Ok(Endpoint { address: address_from(&e.address)?, port })
        });
        let endpoints = endpoints.collect::<Result<Vec<_>, WireError>>()?;
        Ok(Self {
            id: x.id.as_ref().ok_or(WireError::Missing("id of an external service"))?.try_into()?,
            is_mesh_wide: x.mesh_wide,
            hosts: each(&x.hosts)?,
            ports: ports.collect::<Result<_, WireError>>()?,
            origination: x.origination.as_ref().map(TryInto::try_into).transpose()?,
            resolution: if endpoints.is_empty() { Resolution::Dns } else { Resolution::Static(endpoints) },
            // Left out, it could be one that was dropped on the way.
            authorization: x
                .authorization
                .as_ref()
                .ok_or(WireError::Missing("authorization of an external service"))?
                .try_into()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use weft_core::authorization::Authorization;

    use super::*;

    fn external() -> External {
        External {
            id: "shop/pay".parse().expect("an id"),
            is_mesh_wide: false,
            hosts: vec!["pay.example.com".parse().expect("a host"), "*.example.org".parse().expect("a host")],
            ports: vec![ExternalPort { port: 80, target: 443, protocol: ExternalProtocol::Http }],
            origination: Some(Origination { sni: Some("front.example.com".into()), server: Server::System }),
            resolution: Resolution::Static(vec![Endpoint {
                address: "203.0.113.1".parse().expect("an address"),
                port: Some(8443),
            }]),
            authorization: Authorization::default(),
        }
    }

    #[test]
    fn an_egress_survives_the_wire() {
        let peer = Peer::read(&["spiffe://east.example/ns/shop/sa/stock", "spiffe://east.example/ns/shop/sa/stock2"]);
        let everybody = Peer::read(&["spiffe://east.example/*"]);
        let of = |server| Some(Origination { sni: None, server });
        for (resolution, origination) in [
            (external().resolution, external().origination),
            (Resolution::Dns, of(Server::Anchored("PEM".into()))),
            (Resolution::Dns, of(Server::Peer(peer.expect("good")))),
            (Resolution::Dns, of(Server::Peer(everybody.expect("good")))),
            (Resolution::Dns, None),
        ] {
            let externals = vec![Arc::new(External { resolution, origination, ..external() })];
            let default_from = PostureFrom::Namespace("shop".parse().expect("a namespace"));
            let egress = Egress { default: EgressDefault::Deny, default_from, externals };
            assert_eq!(Egress::try_from(&v1::Egress::from(&egress)), Ok(egress));
        }
    }

    #[test]
    fn what_is_missing_or_not_known_is_refused() {
        assert!(Egress::try_from(&v1::Egress::default()).is_err(), "no default");
        let good = v1::ExternalService::from(&external());
        assert!(External::try_from(&good).is_ok());
        let origination = |x: &mut v1::ExternalService, ca: &str, id: &str| {
            x.origination = Some(v1::TlsOrigination { ca: ca.into(), identities: vec![id.into()], ..Default::default() });
        };
        let broken: [&dyn Fn(&mut v1::ExternalService); 9] = [
            &|x| x.hosts.clear(),
            &|x| x.ports.clear(),
            &|x| x.ports[0].protocol = 77,
            &|x| x.ports[0].target = 0,
            &|x| x.endpoints[0].address = vec![1].into(),
            &|x| x.authorization = None,
            &|x| origination(x, "", "*"),
            &|x| origination(x, "", ""),
            &|x| origination(x, "PEM", "spiffe://east.example/*"),
        ];
        for (i, break_it) in broken.iter().enumerate() {
            let mut x = good.clone();
            break_it(&mut x);
            assert!(External::try_from(&x).is_err(), "{i}");
            let bytes = v1::Egress { externals: vec![external_bytes(&x)], ..egress_to(EgressDefault::Allow, &PostureFrom::Mesh) };
            assert!(Egress::try_from(&bytes).is_err(), "{i}");
        }
    }
}
