//! `ExternalService` (`weft.dev/v1alpha1`), to the nouns of `weft_core`. One that cannot be honoured is an object all the same: its status says why.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use weft_core::authorization::Authorization;
use weft_core::authorization::policy::HostMatch;
use weft_core::egress::{
    Endpoint, External, ExternalPort, ExternalProtocol, Forbidden, Host, InvalidPeers, Origination, Peer, Resolution, Server,
    forbidden,
};
use weft_core::service::ObjectRef;

use super::traffic::Wrong;

/// An external service as it was read.
#[derive(Clone, PartialEq, Debug)]
pub struct ExternalObject {
    pub id: ObjectRef,
    /// 0 where nobody counts.
    pub generation: i64,
    /// Without policies, and as if it stood in no place of its own. Else the field below `spec`, and what is wrong with it.
    pub content: Result<Arc<External>, Wrong>,
    /// The hosts and ports that can be read of one whose content cannot be honoured; none where there are not both.
    pub shut: Option<Arc<External>>,
}

/// What can be made out of the `spec` of an `ExternalService` that cannot be honoured.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Remains {
    hosts: Vec<Value>,
    ports: Vec<Value>,
}

impl Remains {
    /// Its hosts and ports, as far as they can be read, for who is to keep them shut.
    pub fn shut(&self, id: &ObjectRef) -> Option<External> {
        let texts = self.hosts.iter().filter_map(Value::as_str).take(MAX_HOSTS);
        let hosts: Vec<HostMatch> = texts.filter_map(|text| text.parse().ok()).collect();
        let mut ports: Vec<ExternalPort> = Vec::new();
        for it in self.ports.iter().take(MAX_PORTS) {
            let port = it["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
            if port == 0 || ports.iter().any(|known| known.port == port) {
                continue;
            }
            let protocol = match it["protocol"].as_str() {
                Some("http") => ExternalProtocol::Http,
                Some("http2") => ExternalProtocol::Http2,
                Some("tcp") => ExternalProtocol::Tcp,
                _ => ExternalProtocol::Tls,
            };
            ports.push(ExternalPort { port, target: port, protocol });
        }
        (!hosts.is_empty() && !ports.is_empty()).then(|| External {
            id: id.clone(),
            is_mesh_wide: false,
            hosts,
            ports,
            origination: None,
            resolution: Resolution::Dns,
            authorization: Authorization::default(),
        })
    }
}

/// `spec` of an `ExternalService`. A field that is not known is an error.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalSpec {
    /// Names, `*.` before a name, or addresses that stand in `endpoints`. 1 to 64.
    hosts: Vec<String>,
    /// 1 to 16, each port once.
    ports: Vec<PortSpec>,
    /// Default: the application's bytes go out as they are.
    #[serde(default)]
    tls: TlsSpec,
    /// Where the addresses come from. Default: `dns`.
    #[serde(default)]
    resolution: ResolutionSpec,
    /// With `static`: 1 to 64.
    #[serde(default)]
    endpoints: Vec<EndpointSpec>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortSpec {
    /// What the application dials.
    port: u16,
    /// What is dialled. Default: the same; 443 for port 80 where TLS is originated.
    target_port: Option<u16>,
    /// For people.
    name: Option<String>,
    protocol: ProtocolSpec,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum ProtocolSpec {
    Http,
    Http2,
    Tls,
    Tcp,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TlsSpec {
    #[serde(default)]
    mode: ModeSpec,
    /// With `originate`. PEM. Default: the system's anchors.
    ca_certificates: Option<String>,
    /// With `mutual`: SPIFFE IDs of one foreign trust domain, or `spiffe://TRUST_DOMAIN/*`. 1 to 64.
    identities: Option<Vec<String>>,
    /// Default: the host.
    sni: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "lowercase")]
enum ModeSpec {
    #[default]
    None,
    Originate,
    Mutual,
}

impl ModeSpec {
    const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Originate => "originate",
            Self::Mutual => "mutual",
        }
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "lowercase")]
enum ResolutionSpec {
    #[default]
    Dns,
    Static,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct EndpointSpec {
    address: String,
    /// Default: that of the service's port.
    port: Option<u16>,
}

const MAX_HOSTS: usize = 64;
const MAX_PORTS: usize = 16;
const MAX_ENDPOINTS: usize = 64;
/// The most bytes of anchors.
const MAX_CA: usize = 64 << 10;

fn wrong<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Wrong> {
    Err((field.into(), message.into()))
}

fn counted(field: &str, count: usize, most: usize) -> Result<(), Wrong> {
    match count {
        0 => wrong(field, "is empty: name at least one"),
        n if n > most => wrong(field, format!("{n} of them; at most {most} are taken: make several ExternalServices")),
        _ => Ok(()),
    }
}

impl ExternalSpec {
    /// What it says, or the first field below `spec` that cannot be honoured.
    pub fn read(&self, id: &ObjectRef) -> Result<External, Wrong> {
        let resolution = self.resolution()?;
        let hosts = self.hosts(&resolution)?;
        let origination = self.origination()?;
        let ports = self.ports(origination.as_ref())?;
        Ok(External {
            id: id.clone(),
            is_mesh_wide: false,
            hosts,
            ports,
            origination,
            resolution,
            authorization: Authorization::default(),
        })
    }

    fn hosts(&self, resolution: &Resolution) -> Result<Vec<HostMatch>, Wrong> {
        counted("hosts", self.hosts.len(), MAX_HOSTS)?;
        let mut seen = BTreeSet::new();
        let each = self.hosts.iter().enumerate().map(|(i, text)| {
            let field = format!("hosts[{i}]");
            let host: HostMatch =
                text.parse().map_err(|e: weft_core::authorization::policy::InvalidClause| (field.clone(), e.to_string()))?;
            if !seen.insert(host.to_string()) {
                return wrong(field, format!("{host} stands twice"));
            }
            let name = match &host {
                HostMatch::Exact(name) | HostMatch::Suffix(name) => name,
            };
            match (Host::read(name), &host, resolution) {
                (None, ..) => wrong(field, "its last label is a number, which some take for an address: write an address whole"),
                (Some(Host::Address(_)), HostMatch::Suffix(_), _) => {
                    wrong(field, "'*.' stands before a name, not before an address")
                }
                (Some(Host::Address(ip)), _, Resolution::Static(all)) if all.iter().any(|e| e.address.to_canonical() == ip) => {
                    Ok(host)
                }
                (Some(Host::Address(_)), ..) => {
                    wrong(field, "an address is a host only where it stands in endpoints, with resolution static")
                }
                (Some(Host::Name(_)), ..) => Ok(host),
            }
        });
        each.collect()
    }

    fn ports(&self, origination: Option<&Origination>) -> Result<Vec<ExternalPort>, Wrong> {
        let is_mutual = origination.is_some_and(|o| o.peer().is_some());
        counted("ports", self.ports.len(), MAX_PORTS)?;
        let mut ports: Vec<ExternalPort> = Vec::new();
        for (i, p) in self.ports.iter().enumerate() {
            let field = |name: &str| format!("ports[{i}].{name}");
            if p.port == 0 {
                return wrong(field("port"), "0 is not a port: use 1 to 65535");
            }
            if p.target_port == Some(0) {
                return wrong(field("targetPort"), "0 is not a port: use 1 to 65535");
            }
            if ports.iter().any(|q| q.port == p.port) {
                return wrong(field("port"), format!("{} stands twice", p.port));
            }
            if p.name.as_ref().is_some_and(|n| n.is_empty() || n.len() > 63) {
                return wrong(field("name"), "it must have 1 to 63 characters");
            }
            let protocol = match p.protocol {
                ProtocolSpec::Http => ExternalProtocol::Http,
                ProtocolSpec::Http2 => ExternalProtocol::Http2,
                ProtocolSpec::Tls => ExternalProtocol::Tls,
                ProtocolSpec::Tcp => ExternalProtocol::Tcp,
            };
            let is_taken = protocol.is_http() || is_mutual && protocol == ExternalProtocol::Tcp;
            if origination.is_some() && !is_taken {
                let message = format!(
                    "TLS is opened for http and http2, and for tcp where it is mutual; a port of {} goes into an ExternalService of its own",
                    protocol.as_str()
                );
                return wrong(field("protocol"), message);
            }
            let usual = if origination.is_some() && !is_mutual && p.port == 80 { 443 } else { p.port };
            ports.push(ExternalPort { port: p.port, target: p.target_port.unwrap_or(usual), protocol });
        }
        Ok(ports)
    }

    fn origination(&self) -> Result<Option<Origination>, Wrong> {
        let TlsSpec { mode, ca_certificates, sni, identities } = &self.tls;
        for (field, is_given, modes) in [
            ("caCertificates", ca_certificates.is_some(), &[ModeSpec::Originate][..]),
            ("identities", identities.is_some(), &[ModeSpec::Mutual]),
            ("sni", sni.is_some(), &[ModeSpec::Originate, ModeSpec::Mutual]),
        ] {
            if is_given && !modes.contains(mode) {
                let modes = modes.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(" or ");
                return wrong(format!("tls.{field}"), format!("means nothing unless tls.mode is {modes}"));
            }
        }
        let server = match mode {
            ModeSpec::None => return Ok(None),
            ModeSpec::Originate => match ca_certificates {
                None => Server::System,
                Some(pem) => {
                    if pem.len() > MAX_CA {
                        return wrong("tls.caCertificates", format!("{} bytes; at most {MAX_CA} are taken", pem.len()));
                    }
                    weft_tls::anchors(pem).map_err(|e| ("tls.caCertificates".to_owned(), e.to_string()))?;
                    Server::Anchored(pem.as_str().into())
                }
            },
            ModeSpec::Mutual => Server::Peer(Peer::read(identities.as_deref().unwrap_or_default()).map_err(|e| match e {
                InvalidPeers::Count(_) => ("tls.identities".to_owned(), e.to_string()),
                InvalidPeers::Text { place, why } => (format!("tls.identities[{place}]"), why),
            })?),
        };
        if let Some(sni) = sni
            && Host::read(sni).is_none_or(|host| host.name().is_none())
        {
            return wrong("tls.sni", "it must be a host name");
        }
        let lower = |text: &String| text.trim_end_matches('.').to_ascii_lowercase().into();
        Ok(Some(Origination { sni: sni.as_ref().map(lower), server }))
    }

    fn resolution(&self) -> Result<Resolution, Wrong> {
        if self.resolution == ResolutionSpec::Dns {
            return if self.endpoints.is_empty() {
                Ok(Resolution::Dns)
            } else {
                wrong("endpoints", "stand here, and resolution is dns, which asks the resolver: write static, or leave them out")
            };
        }
        counted("endpoints", self.endpoints.len(), MAX_ENDPOINTS)?;
        let each = self.endpoints.iter().enumerate().map(|(i, e)| {
            let field = |name: &str| format!("endpoints[{i}].{name}");
            let Ok(address) = e.address.parse::<IpAddr>() else {
                return wrong(
                    field("address"),
                    format!("{:?} is not an IP address", e.address.chars().take(60).collect::<String>()),
                );
            };
            if let Some(why @ (Forbidden::Loopback | Forbidden::NoHost)) = forbidden(address, &[], Some(&[])) {
                return wrong(field("address"), format!("it is {why}"));
            }
            if e.port == Some(0) {
                return wrong(field("port"), "0 is not a port: use 1 to 65535");
            }
            Ok(Endpoint { address, port: e.port })
        });
        Ok(Resolution::Static(each.collect::<Result<_, Wrong>>()?))
    }
}

#[cfg(test)]
mod tests;
