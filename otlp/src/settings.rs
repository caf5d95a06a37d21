//! What the variables say of one signal's exporter.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use super::env::{Env, Signal};

/// A variable that cannot be honoured. Values of headers are never told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {why}")]
pub struct SettingError {
    pub name: String,
    pub why: String,
}

/// How OTLP is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Grpc,
    /// HTTP/1.1 with protobuf.
    Http,
}

/// Where and how one signal is exported.
pub struct Settings {
    pub protocol: Protocol,
    /// The endpoint, for people: without what may be a secret.
    pub place: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) gzip: bool,
    /// For a whole export, repetitions included.
    pub timeout: Duration,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
}

const TIMEOUT: Duration = Duration::from_secs(10);

impl Settings {
    /// None where no collector is named: `OTEL_{SIGNAL}_EXPORTER` is not `otlp`, and no endpoint is set; or where it is `none`, or
    /// `OTEL_SDK_DISABLED` is set. A sidecar has no reason to guess that a collector is on its own loopback.
    pub fn read(signal: Signal, env: &Env) -> Result<Option<Self>, SettingError> {
        let wrong = |name: &str, why: String| SettingError { name: name.to_owned(), why };
        let exporter = format!("OTEL_{}_EXPORTER", signal.upper());
        let asked = match env.get(&exporter) {
            Some("none") => return Ok(None),
            Some("otlp") => true,
            None => false,
            Some(other) => return Err(wrong(&exporter, format!("{other:?} is not known: write otlp or none"))),
        };
        let own = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.upper());
        let endpoint = env.exporter(signal, "ENDPOINT");
        if env.is_disabled() || !(asked || endpoint.is_some()) {
            return Ok(None);
        }
        let protocol = match env.exporter(signal, "PROTOCOL") {
            None | Some((_, "grpc")) => Protocol::Grpc,
            Some((_, "http/protobuf")) => Protocol::Http,
            Some((name, other)) => {
                return Err(wrong(&name, format!("{other:?} is not spoken here: write grpc or http/protobuf")));
            }
        };
        let default = if protocol == Protocol::Grpc { "http://localhost:4317" } else { "http://localhost:4318" };
        let (name, text) = endpoint.unwrap_or_else(|| ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), default));
        let insecure = env.exporter(signal, "INSECURE").is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        let place = Endpoint::read(text, protocol, insecure).map_err(|why| wrong(&name, why))?;
        let path = match protocol {
            Protocol::Grpc => signal.rpc().to_owned(),
            // One signal's own endpoint is taken as it is; the common one is what all paths stand below.
            Protocol::Http if name == own => place.path.clone(),
            Protocol::Http => format!("{}/{}", place.path.trim_end_matches('/'), signal.path()),
        };
        let shown = format!("{}{}", place.authority, if protocol == Protocol::Grpc { "" } else { &path });
        let path = match (&place.query, protocol) {
            (Some(query), Protocol::Http) => format!("{path}?{query}"),
            _ => path,
        };
        let gzip = match env.exporter(signal, "COMPRESSION") {
            None | Some((_, "none")) => false,
            Some((_, "gzip")) => true,
            Some((name, other)) => return Err(wrong(&name, format!("{other:?} is not known: write gzip or none"))),
        };
        let timeout = match env.exporter(signal, "TIMEOUT") {
            None => TIMEOUT,
            Some((name, text)) => {
                let millis = text.parse().ok().filter(|n| (1..=600_000).contains(n));
                Duration::from_millis(millis.ok_or_else(|| wrong(&name, format!("{text:?} is not 1 to 600000 (milliseconds)")))?)
            }
        };
        let scheme = if place.tls { "https" } else { "http" };
        Ok(Some(Self {
            protocol,
            place: format!("{scheme}://{shown}"),
            headers: headers(signal, env)?,
            tls: if place.tls { Some(Arc::new(tls(signal, env, protocol)?)) } else { None },
            host: place.host,
            port: place.port,
            authority: place.authority,
            path,
            gzip,
            timeout,
        }))
    }
}

/// A collector's address.
struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
    /// It may hold a key, and is told nowhere.
    query: Option<String>,
}

impl Endpoint {
    fn read(text: &str, protocol: Protocol, insecure: bool) -> Result<Self, String> {
        let example = if protocol == Protocol::Grpc { "http://collector:4317" } else { "http://collector:4318" };
        // The text is not repeated whole: it may hold a user and a password.
        let wrong = |why: &str| format!("it {why}: write {example}");
        let with_scheme = match text.split_once("://") {
            None if protocol == Protocol::Grpc => format!("{}://{text}", if insecure { "http" } else { "https" }),
            _ => text.to_owned(),
        };
        let uri: Uri = with_scheme.parse().map_err(|_| wrong("is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("has a scheme that is neither http nor https")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("has a user in it, which is not sent: use OTEL_EXPORTER_OTLP_HEADERS"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let standard = match (protocol, tls) {
            (Protocol::Grpc, _) => 4317,
            (Protocol::Http, false) => 80,
            (Protocol::Http, true) => 443,
        };
        let path = uri.path();
        Ok(Self {
            tls,
            port: authority.port_u16().unwrap_or(standard),
            authority: authority.to_string(),
            host,
            query: uri.query().map(str::to_owned),
            path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
        })
    }
}

fn headers(signal: Signal, env: &Env) -> Result<Vec<(HeaderName, HeaderValue)>, SettingError> {
    let Some((variable, text)) = env.exporter(signal, "HEADERS") else { return Ok(vec![]) };
    let wrong = |why: String| SettingError { name: variable.clone(), why };
    Env::pairs(text)
        .into_iter()
        .map(|pair| {
            let (name, value) = pair.map_err(wrong)?;
            let value =
                HeaderValue::try_from(value).map_err(|_| wrong(format!("the value of {name} cannot stand in a header")))?;
            let header = HeaderName::try_from(&*name).map_err(|_| wrong(format!("{name:?} is no name of a header")))?;
            Ok((header, value))
        })
        .collect()
}

fn tls(signal: Signal, env: &Env, protocol: Protocol) -> Result<rustls::ClientConfig, SettingError> {
    let read = |what: &str| match env.exporter(signal, what) {
        None => Ok(None),
        Some((name, path)) => match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some((name, text))),
            Err(e) => Err(SettingError { why: format!("{path} cannot be read: {e}"), name }),
        },
    };
    let (anchors, chain, key) = (read("CERTIFICATE")?, read("CLIENT_CERTIFICATE")?, read("CLIENT_KEY")?);
    let name = |given: &Option<(String, String)>, otherwise: &str| {
        given.as_ref().map_or_else(|| otherwise.to_owned(), |(name, _)| name.clone())
    };
    let blamed = name(&anchors, "OTEL_EXPORTER_OTLP_CERTIFICATE");
    let own = match (&chain, &key) {
        (None, None) => None,
        (Some((_, chain)), Some((_, key))) => Some((&**chain, &**key)),
        (Some((name, _)), None) => {
            return Err(SettingError { name: name.clone(), why: "there is no OTEL_EXPORTER_OTLP_CLIENT_KEY beside it".into() });
        }
        (None, Some((name, _))) => {
            let why = "there is no OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE beside it".into();
            return Err(SettingError { name: name.clone(), why });
        }
    };
    let alpn: &[u8] = if protocol == Protocol::Grpc { b"h2" } else { b"http/1.1" };
    weft_tls::outside_config_as(anchors.as_ref().map(|(_, pem)| &**pem), own, &[alpn]).map_err(|e| {
        let at_fault = matches!(e, weft_tls::OutsideError::Own(_)).then(|| name(&chain, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"));
        SettingError { name: at_fault.unwrap_or(blamed), why: e.to_string() }
    })
}
