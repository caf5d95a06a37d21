//! Where the pod goes outside of the mesh: which host is meant, whether the pod may go there, and the way. What was dialled says so only where nothing
//! else does: a host that is named is looked up by the sidecar itself, or the name would let its speaker go anywhere.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use weft_core::authorization::Compiled;
use weft_core::authorization::policy::PostureFrom;
use weft_core::detect::{ClientHello, Detection};
use weft_core::egress::{EgressDefault, External, ExternalPort, ExternalProtocol, Host, Listed, Table, host_of};
use weft_core::failure::{Answer, Failure, Reason};
use weft_core::protocol::MeshProtocol;
use weft_core::traffic::table::RequestFacts as _;

use crate::authorize::Guard;
use crate::connect::Destination;
use crate::denials::Call;
use crate::detect::{FirstBytes, Hearing, NoBytes, first_bytes};
use crate::http::RequestHead;
use crate::mesh::{Mesh, Target};
use crate::metrics::{Direction, EdgeKey};
use crate::outbound::{http, pass_through};
use crate::placed::placed;
use crate::route::Route;
use crate::serve;
use crate::stream::Stream;
use crate::worker::Worker;

pub mod outside;
pub mod tls;

use outside::Outside;

/// What is meant, as far as it is known.
#[derive(Clone, Debug)]
pub enum Aim {
    /// A host that was named.
    Host(Host),
    /// An address, and the names that led there.
    Address(IpAddr, Vec<Host>),
    /// An address, and no name that could be believed.
    Nameless(IpAddr),
}

impl Aim {
    fn find<'t>(&self, table: &'t Table, port: u16) -> Option<(&'t Arc<Listed>, ExternalPort)> {
        match self {
            Self::Host(host) => table.find(host, port),
            Self::Address(ip, names) => table.find_by_address(*ip, port, names),
            Self::Nameless(_) => None,
        }
    }

    /// The policies that say whether the pod may go there; none where it may. An error where nothing allows it, or where it goes by an external service
    /// that is gone or says another way now.
    pub fn compiled(&self, mesh: &Mesh, port: u16, by: Option<&Arc<Listed>>) -> Result<Option<Arc<Compiled>>, Failure> {
        mesh.may_call()?;
        let table = mesh.egress();
        let found = table.as_ref().and_then(|table| self.find(table, port));
        if let Some(by) = by
            && found.is_none_or(|(listed, _)| !Arc::ptr_eq(listed, by) && !is_same_way(&listed.external, &by.external, port))
        {
            let id = &by.external.id;
            let detail = format!("{self} is reached by ExternalService {id} no more, or in another way now");
            return Err(Failure::mesh(Reason::EgressDenied).detail(detail));
        }
        let Some(table) = &table else { return Ok(None) };
        match found {
            Some((listed, _)) => Ok(listed.compiled.clone()),
            None if table.default() == EgressDefault::Allow => Ok(None),
            None => Err(Failure::mesh(Reason::EgressDenied).detail(format_args!("{self} is in no external service any more"))),
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(f),
            Self::Address(ip, _) | Self::Nameless(ip) => ip.fmt(f),
        }
    }
}

/// Whether two versions of an external service, or two of them, lead to the same servers in the same way.
fn is_same_way(one: &External, other: &External, port: u16) -> bool {
    (one.port(port), &one.origination, &one.resolution) == (other.port(port), &other.origination, &other.resolution)
}

/// The way out for one request or connection.
pub struct Way {
    pub destination: Arc<Destination>,
    /// The external service, for metrics.
    pub name: Arc<str>,
    /// It knows what is meant.
    pub guard: Guard,
}

fn unknown() -> Arc<str> {
    static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());
    UNKNOWN.clone()
}

/// Serves one connection to an address that the mesh does not know, where not everything is open.
pub async fn serve(worker: &Rc<Worker>, stream: Stream, destination: SocketAddr, table: &Table) {
    if let Err(failure) = worker.mesh().may_call() {
        return refused(worker, stream, destination, failure).await;
    }
    let (ip, port) = (destination.ip(), destination.port());
    if table.knows_by_address(port) {
        let names = worker.shared.resolver.learned.names(ip);
        if let Some((listed, at)) = table.find_by_address(ip, port, &names) {
            let aim = Aim::Address(ip, names);
            return match Outside::at(worker, listed, at, destination) {
                Ok(outside) => bytes(worker, &stream, destination, aim, outside).await,
                Err(failure) => serve::refuse(worker, &stream, Some(destination), &failure),
            };
        }
    }
    let is_open = table.default() == EgressDefault::Allow || (port == 53 && worker.shared.resolver.is_server(ip));
    if !table.hears(port) {
        if is_open {
            return pass_through(worker, &stream, destination).await;
        }
        let failure = denied(worker, table, &Aim::Nameless(ip), port, None);
        return refused(worker, stream, destination, failure).await;
    }
    let hearing = Hearing { patience: worker.shared.config.timeouts.handshake, opaque: false };
    let first = match first_bytes(&stream, Some(hearing.patience), hearing).await {
        Ok(first) => first,
        Err(NoBytes::Gone) => return,
        Err(NoBytes::Silent) if is_open => return pass_through(worker, &stream, destination).await,
        Err(NoBytes::Silent) => {
            let failure = denied(worker, table, &Aim::Nameless(ip), port, None);
            return serve::refuse(worker, &stream, Some(destination), &failure);
        }
    };
    match &first.what {
        Detection::Http1 | Detection::Http2 => {
            http(worker, stream, first, Route::Unknown { name: unknown() }, destination).await;
        }
        Detection::Tls(hello) => match aim_of(hello, table, port) {
            Ok(Some((aim, listed, at))) => {
                let outside = Outside::named(listed, at, &aim);
                stream.unread(first.bytes.freeze());
                bytes(worker, &stream, destination, aim, outside).await;
            }
            Ok(None) => {
                let aim = named(hello).map_or(Aim::Nameless(ip), Aim::Host);
                unlisted(worker, stream, destination, table, first, &aim).await;
            }
            Err(failure) => serve::refuse(worker, &stream, Some(destination), &failure),
        },
        Detection::Opaque | Detection::More => unlisted(worker, stream, destination, table, first, &Aim::Nameless(ip)).await,
    }
}

/// The host that a `ClientHello` asks for, unless it hides that it means another.
fn named(hello: &ClientHello) -> Option<Host> {
    let host = Host::read(hello.server_name.as_deref()?)?;
    (!hello.has_ech && host.name().is_some()).then_some(host)
}

/// A host, and the external service that stands for it at a port.
type Aimed<'t> = (Aim, &'t Arc<Listed>, ExternalPort);

/// What a `ClientHello` means; none where no external service names it.
fn aim_of<'t>(hello: &ClientHello, table: &'t Table, port: u16) -> Result<Option<Aimed<'t>>, Failure> {
    let Some(host) = named(hello) else { return Ok(None) };
    match table.find(&host, port) {
        None => Ok(None),
        Some((listed, at)) if at.protocol == ExternalProtocol::Tls => Ok(Some((Aim::Host(host), listed, at))),
        Some((listed, at)) => Err(mismatch(listed, at, "TLS")),
    }
}

fn mismatch(listed: &Listed, at: ExternalPort, spoken: &str) -> Failure {
    let (id, port, protocol) = (&listed.external.id, at.port, at.protocol.as_str());
    Failure::mesh(Reason::ProtocolMismatch)
        .detail(format_args!("ExternalService {id} declares port {port} as {protocol}, and the client spoke {spoken}"))
}

/// Bytes for which no external service stands.
async fn unlisted(worker: &Rc<Worker>, stream: Stream, destination: SocketAddr, table: &Table, first: FirstBytes, aim: &Aim) {
    let is_server = destination.port() == 53 && worker.shared.resolver.is_server(destination.ip());
    if table.default() == EgressDefault::Allow || is_server {
        stream.unread(first.bytes.freeze());
        return pass_through(worker, &stream, destination).await;
    }
    let failure = denied(worker, table, aim, destination.port(), None);
    serve::refuse(worker, &stream, Some(destination), &failure);
}

/// Who speaks HTTP is told why; who has not said so much by then is reset.
const SPEAKS_WITHIN: Duration = Duration::from_secs(1);

async fn refused(worker: &Rc<Worker>, stream: Stream, destination: SocketAddr, failure: Failure) {
    let hearing = Hearing { patience: SPEAKS_WITHIN, opaque: false };
    match first_bytes(&stream, Some(SPEAKS_WITHIN), hearing).await {
        Ok(first) if matches!(first.what, Detection::Http1 | Detection::Http2) => {
            // Each request is judged anew, by the host that it names.
            http(worker, stream, first, Route::Unknown { name: unknown() }, destination).await;
        }
        _ => serve::refuse(worker, &stream, Some(destination), &failure),
    }
}

/// Bytes to an external service, for as long as its policies let them.
async fn bytes(worker: &Rc<Worker>, stream: &Stream, dialled: SocketAddr, aim: Aim, outside: Outside) {
    let generation = worker.mesh().generation();
    let guard = Guard::outside(worker, dialled.port(), aim, Some(outside.listed()), MeshProtocol::Tcp);
    let name = outside.name().clone();
    let opened = match guard.bytes(worker) {
        Ok(()) => worker.dial(&Destination::Outside(Arc::new(outside))).await,
        Err(failure) => Err(failure),
    };
    match opened {
        Ok(upstream) => {
            let key = EdgeKey {
                direction: Direction::Outbound,
                port: dialled.port(),
                protocol: "tcp",
                target: name,
                peer: "external".into(),
                tls: ("", ""),
            };
            placed(|| serve::opaque(worker, stream, &upstream, key, None, Some((&guard, generation)))).await;
        }
        Err(failure) => serve::refuse(worker, stream, Some(dialled), &failure),
    }
}

/// Where a request goes whose connection was dialled to an address that the mesh does not know: each one by the host that it names itself.
pub async fn route(worker: &Worker, dialled: SocketAddr, head: &mut RequestHead) -> Route {
    match find(worker, dialled, head).await {
        Ok(route) => route,
        Err(failure) => Route::Refuse { failure, name: unknown() },
    }
}

async fn find(worker: &Worker, dialled: SocketAddr, head: &mut RequestHead) -> Result<Route, Failure> {
    let mesh = worker.mesh();
    mesh.may_call()?;
    let port = dialled.port();
    match mesh.resolve(dialled.ip()).await? {
        Target::Unknown => {}
        target => {
            let gone = || Failure::mesh(Reason::NoEndpoints).detail("what was dialled is another thing now");
            return Route::to(target, port, &worker.shared.config.net).ok_or_else(gone);
        }
    }
    let Some(table) = mesh.egress() else { return Ok(as_dialled(worker, dialled, Aim::Nameless(dialled.ip()))) };
    let host = named_by(head);
    if let Some(host) = &host
        && let Some((listed, at)) = table.find(host, port)
    {
        let is_h2 = head.authority.is_some();
        if !at.protocol.is_http() || (at.protocol == ExternalProtocol::Http2 && !is_h2) {
            return Err(mismatch(listed, at, if is_h2 { "HTTP/2" } else { "HTTP/1" }));
        }
        // What is judged is what goes out.
        head.to_origin_form()?;
        let aim = Aim::Host(host.clone());
        let outside = Outside::named(listed, at, &aim);
        return Ok(way(worker, listed.name.clone(), Some(listed), Destination::Outside(Arc::new(outside)), (aim, port)));
    }
    let aim = host.map_or(Aim::Nameless(dialled.ip()), Aim::Host);
    match table.default() {
        EgressDefault::Allow => Ok(as_dialled(worker, dialled, aim)),
        EgressDefault::Deny => Err(denied(worker, &table, &aim, port, Some(head))),
    }
}

fn way(worker: &Worker, name: Arc<str>, by: Option<&Arc<Listed>>, to: Destination, (aim, port): (Aim, u16)) -> Route {
    let guard = Guard::outside(worker, port, aim, by, MeshProtocol::Http1);
    Route::Outside(Rc::new(Way { destination: Arc::new(to), name, guard }))
}

/// Nothing says where else it might go.
fn as_dialled(worker: &Worker, dialled: SocketAddr, aim: Aim) -> Route {
    way(worker, unknown(), None, Destination::Plain { address: dialled, dial: None }, (aim, dialled.port()))
}

/// The one host that a request names; none where it names none, several, or what is no host. The target of CONNECT is for somebody else to dial.
fn named_by(head: &RequestHead) -> Option<Host> {
    if head.is_connect() {
        return None;
    }
    let mut settled;
    let head = if head.target.starts_with(b"/") || head.authority.is_some() {
        head
    } else {
        settled = head.clone();
        settled.to_origin_form().ok()?;
        &settled
    };
    let mut found: Vec<Option<Host>> = head.authority.iter().map(|a| host_of(a)).collect();
    head.header_values("host", &mut |value| found.push(host_of(value)));
    let first = found.first()?.clone()?;
    found.iter().all(|host| host.as_ref() == Some(&first)).then_some(first)
}

/// Writes down that nothing allows a destination, and makes a failure of it.
fn denied(worker: &Worker, table: &Table, aim: &Aim, port: u16, head: Option<&RequestHead>) -> Failure {
    let identity = worker.mesh().identity.load();
    let peer = identity.as_ref().map_or_else(|| "plaintext".to_owned(), |i| i.svid.info().id.to_string());
    let to = aim.to_string();
    let who = match table.default_from() {
        PostureFrom::Mesh => "the mesh".to_owned(),
        PostureFrom::Namespace(namespace) => format!("namespace {namespace}"),
    };
    let text = format!("denied by the egress default of {who}: no ExternalService that the pod sees names {to} at port {port}");
    let protocol = match head {
        None => "tcp",
        Some(head) if head.authority.is_some() => "http/2",
        Some(_) => "http/1.1",
    };
    let call = Call {
        peer: &peer,
        source: worker.shared.config.net.pod_ips[0],
        to: Some(&to),
        port,
        protocol,
        request: head.map(|h| (&h.method[..], RequestHead::path(h))),
    };
    let remedy = match aim {
        Aim::Host(host) => {
            format!("an ExternalService with the host {host} and the port {port}, in the pod's namespace or for the mesh")
        }
        Aim::Address(..) | Aim::Nameless(_) => format!(
            "a client that names its host (SNI without ECH, or Host), and an ExternalService with that host and port {port}; or one for tcp with the \
             endpoint {to}"
        ),
    };
    let denials = &worker.shared.denials;
    let reference = denials.add_egress(&call, text, remedy);
    if denials.may_log() {
        tracing::info!(%to, port, %reference, "call out of the mesh denied by default");
    }
    let answer = Answer { reference: Some(reference.0), ..Answer::default() };
    Failure::mesh(Reason::EgressDenied).detail(format_args!("{to}, reference {reference}")).answered(answer)
}
