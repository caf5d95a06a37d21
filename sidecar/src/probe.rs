//! The application's health, asked for on behalf of who may not ask: `/probe/NAME` on the admin port.
//!
//! Probes of an orchestrator come in plaintext, from outside of the mesh. A strict policy refuses them, and a connection
//! alone would find the sidecar alive, whatever the application is. So they ask here, and the sidecar makes the check that
//! it was told of by that name: nothing else of the application can be reached this way, and nothing of what it says is
//! passed on but whether it is well. However many ask, the application is asked by one at a time, and its answer holds for
//! a moment, so that nobody keeps it busy through here.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weft_core::failure::chain;
use weft_core::wellknown::SIDECAR_PORTS;

use crate::channel::{self, Opening, Wire};
use crate::io::Dialer;

/// How long an answer holds, and how far apart the application is asked at most. Probes are a second apart or more.
const HOLDS: Duration = Duration::from_millis(250);
/// As the kubelet has it.
const MOST_REDIRECTS: usize = 10;
/// How much of a body is waited for, as the kubelet has it.
const MOST_BODY: usize = 10 * 1024;
const LONGEST_TIMEOUT: u32 = 3600;

/// The checks that there are, by name. As text: a JSON object, `{"app/liveness": {"check": "tcp", "port": 80, "timeout_secs": 1}}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks(BTreeMap<String, Check>);

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Check {
    port: u16,
    timeout_secs: u32,
    #[serde(flatten)]
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "check", rename_all = "lowercase")]
enum Kind {
    /// The application accepts a connection.
    Tcp,
    /// The application answers GET with a status from 200 to 399. A certificate is not verified.
    Http {
        path: String,
        #[serde(default)]
        tls: bool,
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// The application serves, by the gRPC health protocol.
    Grpc {
        #[serde(default)]
        service: String,
    },
}

impl FromStr for Checks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let checks: BTreeMap<String, Check> =
            serde_json::from_str(text).map_err(|e| format!("it is no object of checks: {e}"))?;
        for (name, Check { port, timeout_secs, .. }) in &checks {
            if *port == 0 || SIDECAR_PORTS.contains(port) {
                return Err(format!("{name} is about the port {port}, which is not the application's"));
            }
            if !(1..=LONGEST_TIMEOUT).contains(timeout_secs) {
                return Err(format!("{name} has a timeout of {timeout_secs} s; it should be 1 to {LONGEST_TIMEOUT}"));
            }
        }
        Ok(Self(checks))
    }
}

/// Whether the application is well, or why not.
pub type Verdict = Result<(), String>;

/// Makes the checks.
pub struct Probes {
    checks: BTreeMap<String, (Check, Mutex<Last>)>,
    /// The pod's own address: what listens on loopback alone is not reached by others, and so not by a probe.
    address: Option<IpAddr>,
    dialer: Dialer,
}

#[derive(Default)]
struct Last {
    /// When the application was asked, answered or not.
    asked: Option<Instant>,
    answered: Option<(Instant, Verdict)>,
}

impl Probes {
    /// Makes `checks` of the application at `address`.
    pub fn new(checks: &Checks, address: Option<IpAddr>, dialer: Dialer) -> Self {
        let checks = checks.0.iter().map(|(name, check)| (name.clone(), (check.clone(), Mutex::default())));
        Self { checks: checks.collect(), address, dialer }
    }

    /// The longest that a check may take.
    pub fn longest(&self) -> Duration {
        let longest = self.checks.values().map(|(check, _)| check.timeout_secs).max();
        Duration::from_secs(longest.unwrap_or_default().into()) + HOLDS
    }

    /// Makes the check of this name, or answers as it was answered a moment ago; None where there is none. `agent` is
    /// whom the application sees asking. Dropped at any point, it leaves nothing behind.
    pub async fn ask(&self, name: &str, agent: &str) -> Option<Verdict> {
        let (check, last) = self.checks.get(name)?;
        let mut last = last.lock().await;
        if let Some((at, verdict)) = &last.answered
            && at.elapsed() < HOLDS
        {
            return Some(verdict.clone());
        }
        // Whoever asked before has gone without waiting for the answer.
        if let Some(asked) = last.asked {
            sleep_until(asked + HOLDS).await;
        }
        last.asked = Some(Instant::now());
        let within = Duration::from_secs(check.timeout_secs.into());
        let verdict = timeout(within, Box::pin(self.make(check, agent))).await;
        let verdict = verdict.unwrap_or_else(|_| Err(format!("no answer in {} s", within.as_secs())));
        last.answered = Some((Instant::now(), verdict.clone()));
        Some(verdict)
    }

    async fn make(&self, check: &Check, agent: &str) -> Verdict {
        let address = self.address.ok_or("the pod has no address")?;
        let to = SocketAddr::new(address, check.port);
        match &check.kind {
            Kind::Tcp => self.dialer.connect(to).await.map(drop).map_err(said),
            Kind::Http { path, tls, headers } => self.http(to, path, *tls, &headers_of(to, headers, agent)?).await,
            Kind::Grpc { service } => grpc(self.dialer, to, service, agent).await,
        }
    }

    async fn http(&self, to: SocketAddr, path: &str, tls: bool, headers: &HeaderMap) -> Verdict {
        let origin = format!("{}://{to}", if tls { "https" } else { "http" });
        let mut target = target_of(path);
        for _ in 0..=MOST_REDIRECTS {
            let mut request = Request::get(target.as_str()).body(Empty::<Bytes>::new()).map_err(said)?;
            request.headers_mut().clone_from(headers);
            let tcp = self.dialer.connect(to).await.map_err(said)?;
            let stream: Box<dyn Wire> = if tls {
                Box::new(unverified().connect(ServerName::from(to.ip()), tcp).await.map_err(said)?)
            } else {
                Box::new(tcp)
            };
            let (status, location) = exchange(stream, request).await?;
            if !(200..400).contains(&status.as_u16()) {
                return Err(format!("it answered {}", status.as_u16()));
            }
            // Followed on the same port only: an answer that sends elsewhere is an answer.
            match location.as_deref().map(|location| location.strip_prefix(&origin).unwrap_or(location)) {
                Some(next) if status.is_redirection() && next.starts_with('/') && !next.starts_with("//") => {
                    target = target_of(next);
                }
                _ => return Ok(()),
            }
        }
        Err(format!("it redirected more than {MOST_REDIRECTS} times"))
    }
}

/// One exchange, of which the status and the location are of interest.
async fn exchange(stream: Box<dyn Wire>, request: Request<Empty<Bytes>>) -> Result<(StatusCode, Option<String>), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(said)?;
    let status = response.status();
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut body = response.into_body();
    let mut read = 0;
    while read < MOST_BODY
        && let Some(frame) = body.frame().await
    {
        read += frame.map_err(said)?.data_ref().map_or(0, Bytes::len);
    }
    Ok((status, location))
}

/// The headers as the kubelet sends them: those asked for, and its own where they are not.
fn headers_of(to: SocketAddr, asked: &[(String, String)], agent: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in asked {
        let name = HeaderName::from_str(name).map_err(|_| format!("{name:?} is no header"))?;
        let value = HeaderValue::from_str(value).map_err(|_| format!("the header {name} has a value that can't be sent"))?;
        if name == HOST {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
    for (name, value) in [(HOST, to.to_string()), (USER_AGENT, agent.to_owned()), (ACCEPT, "*/*".to_owned())] {
        if let (false, Ok(value)) = (headers.contains_key(&name), HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    Ok(headers)
}

/// A path as it stands in a request: rooted, without a fragment, and with what may not stand there escaped (RFC 3986).
fn target_of(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::from(if path.starts_with('/') { "" } else { "/" });
    for byte in path.bytes() {
        match byte {
            b'!'..=b'~' if !b"\"<>\\^`{|}".contains(&byte) => target.push(char::from(byte)),
            _ => {
                let _ = write!(target, "%{byte:02X}");
            }
        }
    }
    target
}

async fn grpc(dialer: Dialer, to: SocketAddr, service: &str, agent: &str) -> Verdict {
    let endpoint = Endpoint::from_shared(format!("http://{to}")).map_err(|e| chain(&e))?;
    let endpoint = endpoint.user_agent(agent).map_err(|e| chain(&e))?;
    let open = move || -> Opening {
        Box::pin(async move {
            let tcp = dialer.connect(to).await?;
            tcp.set_nodelay(true)?;
            Ok(Box::new(tcp) as Box<dyn Wire>)
        })
    };
    let mut client = HealthClient::new(channel::channel(endpoint, open).await.map_err(|e| chain(&e))?);
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await;
    match answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("it answered {}", other.as_str_name())),
    }
}

fn said(error: impl Display) -> String {
    error.to_string()
}

/// TLS as a prober has it: any certificate will do, since nothing is told to whoever has it.
fn unverified() -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for every version that is built in")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
