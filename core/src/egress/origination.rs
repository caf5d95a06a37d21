//! TLS that the sidecar opens for the application, and who may be at its other end.

use std::fmt;
use std::sync::Arc;

use crate::authorization::policy::Principal;
use crate::identity::{SpiffeId, TrustDomain};

/// TLS that the sidecar opens for the application.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Origination {
    /// The server name that is asked for; none is the host. Of a server that is known by its name, the certificate must have it.
    pub sni: Option<Arc<str>>,
    /// Who the server must be.
    pub server: Server,
}

/// Who vouches for a server, and by what it is known.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Server {
    /// Known by its name, vouched for by the system's anchors.
    #[default]
    System,
    /// Known by its name, vouched for by these anchors (PEM).
    Anchored(Arc<str>),
    /// Known by its SPIFFE ID. TLS is mutual: the sidecar shows its own certificate.
    Peer(Peer),
}

/// SPIFFE peers of one foreign trust domain, whose anchors alone vouch for them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Peer {
    domain: TrustDomain,
    /// In order, each once; none is everybody of the domain.
    only: Option<Arc<[SpiffeId]>>,
}

/// The most identities of one external service.
pub const MAX_PEERS: usize = 64;

/// Why texts name no peers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPeers {
    /// There are none, or too many.
    #[error("{0} of them, where 1 to {MAX_PEERS} are taken")]
    Count(usize),
    /// One cannot be an identity.
    #[error("{why}")]
    Text {
        /// Its place, from 0.
        place: usize,
        /// What is wrong.
        why: String,
    },
}

impl Peer {
    /// Reads identities, and `spiffe://TRUST_DOMAIN/*` for everybody of a domain. All are of one domain.
    pub fn read<T: AsRef<str>>(texts: &[T]) -> Result<Self, InvalidPeers> {
        if texts.is_empty() || texts.len() > MAX_PEERS {
            return Err(InvalidPeers::Count(texts.len()));
        }
        let (mut domain, mut all, mut only) = (None::<TrustDomain>, false, Vec::new());
        for (place, text) in texts.iter().enumerate() {
            let wrong = |why: String| InvalidPeers::Text { place, why };
            let of = match text.as_ref().parse::<Principal>().map_err(|e| wrong(e.to_string()))? {
                Principal::TrustDomain(domain) => {
                    all = true;
                    domain
                }
                Principal::Exact(id) if id.is_control_plane() => {
                    return Err(wrong(format!("{id} is a control plane's, and no workload has it")));
                }
                Principal::Exact(id) => {
                    let domain = id.trust_domain().clone();
                    only.push(id);
                    domain
                }
                Principal::Any | Principal::Prefix(_) => {
                    return Err(wrong(
                        "write whole identities, or spiffe://TRUST_DOMAIN/* for everybody of a trust domain".to_owned(),
                    ));
                }
            };
            match &domain {
                Some(first) if *first != of => {
                    return Err(wrong(format!(
                        "it is of {of}, and those before it are of {first}: one ExternalService is for one trust domain"
                    )));
                }
                _ => domain = Some(of),
            }
        }
        only.sort();
        only.dedup();
        let domain = domain.ok_or(InvalidPeers::Count(0))?;
        Ok(Self { domain, only: (!all).then(|| only.into()) })
    }

    /// The trust domain whose anchors are asked.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Whether an identity is one of them. A control plane's never is.
    pub fn has(&self, id: &SpiffeId) -> bool {
        id.trust_domain() == &self.domain
            && !id.is_control_plane()
            && self.only.as_ref().is_none_or(|only| only.binary_search(id).is_ok())
    }

    /// As they are written.
    pub fn texts(&self) -> Vec<String> {
        match &self.only {
            None => vec![format!("spiffe://{}/*", self.domain)],
            Some(only) => only.iter().map(ToString::to_string).collect(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.texts();
        match &texts[..] {
            [one] => f.write_str(one),
            [one, rest @ ..] => write!(f, "{one} or {} more", rest.len()),
            [] => f.write_str("nobody"),
        }
    }
}

impl Origination {
    /// The peers that it is for, where TLS is mutual.
    pub fn peer(&self) -> Option<&Peer> {
        match &self.server {
            Server::Peer(peer) => Some(peer),
            Server::System | Server::Anchored(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        text.parse().expect("an identity")
    }

    #[test]
    fn peers_are_whole_identities_or_everybody_of_one_domain() {
        let (stock, other) = ("spiffe://east.example/ns/shop/sa/stock", "spiffe://east.example/ns/shop/sa/other");
        let one = Peer::read(&[stock]).expect("good");
        assert!(one.has(&id(stock)) && !one.has(&id(other)));
        assert_eq!((one.domain().as_str(), one.texts()), ("east.example", vec![stock.to_owned()]));
        let all = Peer::read(&["spiffe://east.example/*", stock]).expect("good");
        assert!(all.has(&id(stock)) && all.has(&id(other)) && !all.has(&id("spiffe://east.example.org/ns/shop/sa/stock")));
        assert!(!all.has(&SpiffeId::control_plane("east.example".parse().expect("a domain"))), "no workload has it");
        assert_eq!(Peer::read(&all.texts()), Ok(all));
        for (texts, place) in [
            (&[] as &[&str], None),
            (&["*"], Some(0)),
            (&["spiffe://east.example"], Some(0)),
            (&["spiffe://east.example/ns/shop/*"], Some(0)),
            (&[stock, "spiffe://west.example/ns/shop/sa/stock"], Some(1)),
            (&["spiffe://east.example/ns/weft-system/sa/weft-control-plane"], Some(0)),
            (&["shop/stock"], Some(0)),
        ] {
            let at = match Peer::read(texts).expect_err("not good") {
                InvalidPeers::Count(_) => None,
                InvalidPeers::Text { place, .. } => Some(place),
            };
            assert_eq!(at, place, "{texts:?}");
        }
        assert_eq!(Peer::read(&vec![stock; 65]), Err(InvalidPeers::Count(65)));
    }
}
