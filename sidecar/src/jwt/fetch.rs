//! Fetches keys, by the ways that the pod's own requests go: to a service of the mesh over mutual TLS, to anything else over its own TLS.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weft_core::backoff::Backoff;
use weft_core::failure::Side;
use weft_core::jwt::KeysUrl;
use weft_tls::tokens::Jwks;

use super::keys::told;
use super::url;
use crate::connect::{Destination, Exchange};
use crate::http::body::{Body, Chunk};
use crate::http::fields::{Fields, list_elements};
use crate::http::h1::{self, Framing, Reader, Writer, response_framing};
use crate::http::{RequestHead, ResponseHead};
use crate::mesh::Target;
use crate::route::{Route, Tried, Wish};
use crate::standing::Place;
use crate::worker::Worker;

/// How long one fetch may take, names and handshakes included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keys are fetched anew after the time that their server gives them, within these bounds; after the middle one where it gives none.
const FRESH: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(300), Duration::from_secs(3600)];
/// A key that is not there has them fetched anew, this often at the most.
const MISSED: Duration = Duration::from_secs(30);
/// What failed is tried again after a wait of up to this.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;

/// Ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the keys that the inbound policy in force needs. Of all workers one does.
pub async fn keep(worker: Rc<Worker>) {
    if !worker.shared.keys.claim() {
        return;
    }
    let mut generations = worker.mesh().generations();
    let mut tasks: HashMap<Arc<str>, Task> = HashMap::new();
    loop {
        generations.mark_unchanged();
        let wanted: Vec<Arc<str>> =
            worker.mesh().inbound.load().as_ref().map(|p| p.issuers.remote().cloned().collect()).unwrap_or_default();
        tasks.retain(|url, _| {
            let is_wanted = wanted.contains(url);
            if !is_wanted {
                worker.shared.keys.forget(url);
            }
            is_wanted
        });
        for url in wanted {
            let start = || Task(tokio::task::spawn_local(keep_one(Rc::clone(&worker), url.clone())));
            tasks.entry(url.clone()).or_insert_with(start);
        }
        if generations.changed().await.is_err() {
            return;
        }
    }
}

async fn keep_one(worker: Rc<Worker>, text: Arc<str>) {
    let keys = &worker.shared.keys;
    let missed = keys.begin(&text);
    let mut backoff = Backoff::new(AGAIN[0], AGAIN[1]);
    loop {
        let fetched = tokio::time::timeout(PATIENCE, Box::pin(fetch(&worker, &text))).await;
        let fetched = fetched.unwrap_or_else(|_| Err(format!("it took longer than {PATIENCE:?}")));
        let read = fetched.and_then(|(set, fresh)| Ok((Jwks::read(&set).map_err(|e| e.to_string())?, set, fresh)));
        let again = match read {
            Ok((set, text_of_set, fresh)) => {
                backoff.reset();
                tracing::debug!(url = told(&text), keys = set.len(), "keys fetched");
                keys.put(&text, &text_of_set, set);
                // Many sidecars go by the same keys: they shall not all ask at once.
                fresh.mul_f64(0.8 + 0.2 * unit(&worker))
            }
            Err(why) => {
                let (since, is_first) = keys.fail(&text);
                if is_first {
                    tracing::warn!(url = told(&text), since, "keys of a JwtIssuer cannot be fetched: {why}; it is tried again");
                } else {
                    tracing::debug!(url = told(&text), "keys still cannot be fetched: {why}");
                }
                let pause = AGAIN[0] / 2 + backoff.next_wait(worker.random());
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        let now = Instant::now();
        let asked = async {
            missed.notified().await;
            tokio::time::sleep_until(now + MISSED.mul_f64(0.9 + 0.1 * unit(&worker))).await;
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(now + again) => {}
            () = asked => tracing::debug!(url = told(&text), "keys are fetched anew, for a token has one that is not among them"),
        }
    }
}

fn unit(worker: &Worker) -> f64 {
    (worker.random() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Fetches a set: its text, and for how long it is fresh.
async fn fetch(worker: &Rc<Worker>, text: &str) -> Result<(Vec<u8>, Duration), String> {
    let url = url(text)?;
    let mut addresses = addresses(&url).await?;
    addresses.retain(|ip| !KeysUrl::refuses(*ip));
    addresses.truncate(ADDRESSES);
    let mut last = format!("{} has no address that keys may be fetched from", url.host);
    for ip in addresses {
        match fetch_from(worker, &url, SocketAddr::new(ip, url.port)).await {
            Ok(fetched) => return Ok(fetched),
            Err(why) => last = why,
        }
    }
    Err(last)
}

async fn addresses(url: &KeysUrl) -> Result<Vec<IpAddr>, String> {
    if let Some(ip) = url.address() {
        return Ok(vec![ip]);
    }
    let found = tokio::net::lookup_host((&*url.host, url.port)).await.map_err(|e| format!("the name {}: {e}", url.host))?;
    let mut all: Vec<IpAddr> = found.map(|a| a.ip().to_canonical()).collect();
    all.dedup();
    Ok(all)
}

async fn fetch_from(worker: &Rc<Worker>, url: &KeysUrl, to: SocketAddr) -> Result<(Vec<u8>, Duration), String> {
    let target = worker.mesh().resolve(to.ip()).await.map_err(|e| e.to_string())?;
    match (url.tls, matches!(target, Target::Unknown)) {
        (true, true) => from_outside(worker, url, to, web_config(system_roots().await?)?).await,
        (false, false) => {
            let route = Route::to(target, to.port(), &worker.shared.config.net).ok_or("it leads nowhere")?;
            let wish = Wish { key: None, pinned: None };
            let lease = route.pick(worker, &Tried::new(), wish, false).map_err(|e| e.to_string())?;
            if lease.destination.identity().is_none() && !lease.own {
                return Err(format!(
                    "{} is a service of the mesh without a sidecar, so that anybody could answer for it: give it one, or use https",
                    lease.destination.address()
                ));
            }
            let free = || Ok(Place::free());
            let opened = worker.open_http1(&lease.destination, free).await.map_err(|e| e.failure.to_string())?;
            let Exchange::Http1(mut connection) = opened.0 else { return Err("another protocol was opened".to_owned()) };
            let connection = &mut *connection;
            let fetched = exchange(&request(url), &mut connection.reader, &mut connection.writer).await;
            if fetched.is_ok() {
                lease.answered(200, None);
            }
            fetched
        }
        (true, false) => Err(format!(
            "{to} is in the mesh, where mutual TLS is the mesh's own matter: write http:// and the port that speaks HTTP"
        )),
        (false, true) => {
            Err(format!("{to} is not in the mesh, and in the clear anybody on the way could change keys: use https"))
        }
    }
}

async fn from_outside(
    worker: &Worker,
    url: &KeysUrl,
    to: SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> Result<(Vec<u8>, Duration), String> {
    let plain = Destination::Plain { address: to, dial: None };
    let stream = worker.dial(&plain).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from(url.host.to_string()).map_err(|e| e.to_string())?;
    let stream = Rc::new(stream.connect_tls(config, name).await.map_err(|e| format!("TLS with {to}: {e}"))?);
    let stall = worker.shared.config.timeouts.write;
    let (mut reader, mut writer) = h1::halves(&stream, Side::Upstream, stall);
    exchange(&request(url), &mut reader, &mut writer).await
}

fn request(url: &KeysUrl) -> RequestHead {
    let mut fields = Fields::default();
    fields.push(b"host", url.authority().as_bytes());
    fields.push(b"accept", b"application/jwk-set+json, application/json");
    fields.push(b"accept-encoding", b"identity");
    fields.push(b"user-agent", b"weft");
    RequestHead {
        method: Bytes::from_static(b"GET"),
        target: Bytes::copy_from_slice(url.target.as_bytes()),
        authority: None,
        scheme: None,
        protocol: None,
        http10: false,
        fields,
    }
}

/// Asks, and reads a bounded answer. The connection is not used again.
async fn exchange(head: &RequestHead, reader: &mut Reader, writer: &mut Writer) -> Result<(Vec<u8>, Duration), String> {
    writer.request(head, Framing::None, Some("close"));
    writer.flush().await.map_err(|e| e.to_string())?;
    let answer = loop {
        let answer = reader.response().await.map_err(|e| e.to_string())?;
        if !answer.is_informational() {
            break answer;
        }
    };
    match answer.status {
        200 => {}
        status @ 300..400 => {
            return Err(format!("it answers with status {status}, and redirects are not followed: name the place itself"));
        }
        status => return Err(format!("it answers with status {status}")),
    }
    let framing = response_framing(&answer, head).map_err(|e| e.to_string())?;
    let mut body = Body::H1(reader.body(framing));
    let mut set = Vec::new();
    while let Some(chunk) = body.next().await.map_err(|e| e.to_string())? {
        let Chunk::Data(data) = chunk else { continue };
        if set.len() + data.len() > Jwks::LARGEST {
            return Err(format!("its answer has more than {} bytes", Jwks::LARGEST));
        }
        set.extend_from_slice(&data);
    }
    Ok((set, freshness(&answer)))
}

/// `max-age` of `Cache-Control` (RFC 9111, section 5.2.2.1), within bounds.
fn freshness(answer: &ResponseHead) -> Duration {
    let [least, middle, most] = FRESH;
    let mut fresh = None;
    for directive in answer.fields.named("cache-control").flat_map(list_elements) {
        let Ok(text) = std::str::from_utf8(directive) else { continue };
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return least,
            "max-age" => fresh = value.trim().trim_matches('"').parse().ok().map(Duration::from_secs),
            _ => {}
        }
    }
    fresh.unwrap_or(middle).clamp(least, most)
}

async fn system_roots() -> Result<RootCertStore, String> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await.map_err(|e| e.to_string())?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        return Err(
            "the system has no certificates of authorities to trust: put them into the image, or name them in SSL_CERT_FILE"
                .to_owned(),
        );
    }
    Ok(roots)
}

/// TLS as the world outside speaks it.
fn web_config(roots: RootCertStore) -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
