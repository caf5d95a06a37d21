//! A veth pair between this network namespace and one that is made for the proof.

use std::net::{IpAddr, SocketAddr};

use super::ends;
use super::peer::{Order, Peer, PeerProgram, add_address};
use crate::error::VerifyError;
use crate::plan::Family;
use crate::tools::run;

/// The end in this namespace.
const HERE: &str = "weft-probe0";
/// The end in the peer's.
const THERE: &str = "weft-probe1";

/// The link, and the peer behind it; both end with this value.
pub(super) struct Link {
    pub(super) peer: Peer,
}

impl Link {
    /// Makes the namespace and the link; the peer listens on `listen_on`.
    pub(super) fn up(program: &PeerProgram, families: &[Family], listen_on: Option<u16>) -> Result<Self, VerifyError> {
        let mut peer =
            Peer::start(program, None).map_err(|error| VerifyError::Peer { doing: "start", why: error.to_string() })?;
        let _done = peer.ask("enter a network namespace of its own", &Order::Leave)?;

        // Left by a run that was killed before the kernel had cleaned up after it; mostly it is not there.
        let _ = run("ip", &["link", "del", HERE], "");
        let pid = peer.pid().to_string();
        let create = ["link", "add", HERE, "type", "veth", "peer", "name", THERE, "netns", pid.as_str()];
        run("ip", &create, "").map_err(VerifyError::Link)?;
        let mut link = Self { peer };
        link.configure(families, listen_on)?;
        Ok(link)
    }

    fn configure(&mut self, families: &[Family], listen_on: Option<u16>) -> Result<(), VerifyError> {
        let mut addresses = Vec::new();
        let mut listen = Vec::new();
        for (here, there) in families.iter().map(|family| ends(*family)) {
            add_address(HERE, &on_link(here)).map_err(VerifyError::Link)?;
            addresses.push(on_link(there));
            listen.extend(listen_on.map(|port| SocketAddr::new(there, port)));
        }
        run("ip", &["link", "set", HERE, "up"], "").map_err(VerifyError::Link)?;
        let join = Order::Join { link: THERE.to_owned(), addresses, listen };
        let _done = self.peer.ask("take its end of the link", &join)?;
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The pair also ends with the peer's namespace, only later; so a failure here leaves nothing behind.
        let _ = run("ip", &["link", "del", HERE], "");
    }
}

/// With the length of a prefix that has both ends and no more.
fn on_link(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/30"),
        IpAddr::V6(address) => format!("{address}/126"),
    }
}
