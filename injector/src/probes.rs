//! The kubelet's probes, turned over to the sidecar.
//!
//! The kubelet asks in plaintext, from the node: strict mTLS would refuse it, and a TCP probe would find the sidecar
//! alive whatever the app is. So each probe of the network is exchanged for one of the sidecar's admin port, and the
//! sidecar makes the check that was asked for, from inside of the pod. The schedule, the thresholds and the timeout
//! stay with the kubelet; what runs a program (`exec`) or names another host stays as it is.

use serde_json::{Value, json};
use weft_core::wellknown::{PORT_ADMIN, SIDECAR_CONTAINER, SIDECAR_PORTS};

use crate::error::{InjectError, excerpt};
use crate::manifest::{Container, Object, Pod, as_object, list_in, malformed, object_in, text_in, whole_number_in};
use crate::names::{ENV_PROBES, PROBE_PATH, REDIRECT_CONTAINER};
use crate::patch::PatchOp;

/// Linux takes 128 KiB for one variable (`MAX_ARG_STRLEN`), its name included.
const MOST_BYTES: usize = 120 * 1024;
/// Where a probe says nothing, in seconds, as in `core/v1`.
const DEFAULT_TIMEOUT: i64 = 1;
/// The sidecar takes no longer one; the kubelet's own stays as it is.
const LONGEST_TIMEOUT: i64 = 3600;

const PROBES: [(&str, &str); 3] = [("livenessProbe", "liveness"), ("readinessProbe", "readiness"), ("startupProbe", "startup")];
/// What the kubelet does over the network.
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// What becomes of a pod's probes.
#[derive(Default)]
pub(crate) struct Probes {
    /// Each exchanges one probe.
    pub(crate) ops: Vec<PatchOp>,
    /// What the sidecar is to check, by `CONTAINER/PROBE`.
    checks: Object,
    pub(crate) warnings: Vec<String>,
}

impl Probes {
    /// Exchanges all that are not exchanged yet.
    pub(crate) fn rewrite(pod: &Pod<'_>) -> Result<Self, InjectError> {
        let mut probes = Self::default();
        let ours = [SIDECAR_CONTAINER, REDIRECT_CONTAINER];
        for container in pod.containers.iter().filter(|container| !ours.contains(&container.name)) {
            for (key, kind) in PROBES {
                if let Some(probe) = object_in(container.object, &container.at, key)? {
                    probes.exchange(container, key, kind, probe)?;
                }
            }
        }
        Ok(probes)
    }

    fn exchange(
        &mut self,
        container: &Container<'_>,
        key: &'static str,
        kind: &'static str,
        probe: &Object,
    ) -> Result<(), InjectError> {
        let at = format!("{}.{key}", container.at);
        let name = format!("{}/{kind}", container.name);
        let path = format!("{PROBE_PATH}/{name}");
        let timeout = whole_number_in(probe, &at, "timeoutSeconds")?.unwrap_or(DEFAULT_TIMEOUT).clamp(1, LONGEST_TIMEOUT);
        let mut check = match check_of(container, probe, &at)? {
            Found::Check(check) => check,
            Found::Nothing => return Ok(()),
            Found::NoPort(port) => {
                self.warnings.push(format!("{at} is left as it is: its container has no port {port}"));
                return Ok(());
            }
        };
        let mut exchanged = probe.clone();
        exchanged.retain(|member, _| !HANDLERS.contains(&member.as_str()));
        exchanged.insert("httpGet".to_owned(), json!({ "path": path, "port": PORT_ADMIN }));
        self.ops.push(PatchOp::add(format!("{}/{key}", container.pointer), Value::Object(exchanged)));
        check.insert("timeout_secs".to_owned(), json!(timeout));
        self.checks.insert(name, Value::Object(check));
        Ok(())
    }

    /// The sidecar's variable with the checks, if there are any.
    pub(crate) fn variable(&self) -> Result<Option<Value>, InjectError> {
        if self.checks.is_empty() { Ok(None) } else { variable(&self.checks).map(Some) }
    }

    /// Everything for a pod that has its sidecar already, and got probes since: the sidecar learns of them too.
    pub(crate) fn into_late_ops(mut self, sidecar: &Container<'_>) -> Result<Vec<PatchOp>, InjectError> {
        if self.checks.is_empty() {
            return Ok(Vec::new());
        }
        let environment = list_in(sidecar.object, &sidecar.at, "env")?;
        let known = environment.and_then(|list| {
            let place = list.iter().position(|entry| entry["name"] == ENV_PROBES)?;
            Some((place, list[place]["value"].as_str().unwrap_or_default()))
        });
        let pointer = format!("{}/env", sidecar.pointer);
        if let Some((_, text)) = known {
            // What is no such object is of no use to the sidecar either.
            let before: Object = serde_json::from_str(&text.replace("$$", "$")).unwrap_or_default();
            for (name, check) in before {
                self.checks.entry(name).or_insert(check);
            }
        }
        let variable = variable(&self.checks)?;
        let op = match (environment, known) {
            (None, _) => PatchOp::add(pointer, json!([variable])),
            (Some(_), None) => PatchOp::add(format!("{pointer}/-"), variable),
            (Some(_), Some((place, _))) => PatchOp::add(format!("{pointer}/{place}/value"), variable["value"].clone()),
        };
        self.ops.push(op);
        Ok(self.ops)
    }
}

fn variable(checks: &Object) -> Result<Value, InjectError> {
    let text = Value::Object(checks.clone()).to_string();
    let value = literal(&text);
    if value.len() > MOST_BYTES {
        return Err(InjectError::ProbesTooLong { bytes: value.len(), most: MOST_BYTES });
    }
    Ok(json!({ "name": ENV_PROBES, "value": value }))
}

/// A variable's value that is to be as it stands: the kubelet would replace a `$(NAME)` in it.
pub(crate) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// What the sidecar is to do in the kubelet's place.
enum Found {
    Check(Object),
    /// The kubelet does it itself.
    Nothing,
    /// A port by a name that stands for none, or a number that is none; the kubelet will say so.
    NoPort(String),
}

fn check_of(container: &Container<'_>, probe: &Object, at: &str) -> Result<Found, InjectError> {
    let handler = HANDLERS.into_iter().find_map(|kind| object_in(probe, at, kind).transpose().map(|found| (kind, found)));
    let Some((kind, handler)) = handler else { return Ok(Found::Nothing) };
    let (handler, at) = (handler?, format!("{at}.{kind}"));
    let text = |key: &str| Ok::<_, InjectError>(text_in(handler, &at, key)?.unwrap_or_default());
    if !text("host")?.is_empty() {
        return Ok(Found::Nothing);
    }
    let port = match handler.get("port") {
        Some(Value::String(name)) => container.port_named(name)?.or_else(|| name.parse().ok()),
        Some(number) => number.as_i64(),
        None => return Err(malformed(&at, "port", "a port's number or name")),
    };
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0) else {
        return Ok(Found::NoPort(excerpt(&handler["port"].to_string())));
    };
    // Also what was exchanged before.
    if SIDECAR_PORTS.contains(&port) {
        return Ok(Found::Nothing);
    }
    let mut check = Object::from_iter([("port".to_owned(), json!(port))]);
    let mut say = |key: &str, value: Value| check.insert(key.to_owned(), value);
    match kind {
        "httpGet" => {
            say("check", json!("http"));
            say("path", json!(text("path")?));
            say("tls", json!(text("scheme")?.eq_ignore_ascii_case("https")));
            let headers = headers_of(handler, &at)?;
            if !headers.is_empty() {
                say("headers", headers.into());
            }
        }
        "tcpSocket" => {
            say("check", json!("tcp"));
        }
        _ => {
            say("check", json!("grpc"));
            say("service", json!(text("service")?));
        }
    }
    Ok(Found::Check(check))
}

fn headers_of(get: &Object, at: &str) -> Result<Vec<Value>, InjectError> {
    let mut headers = Vec::new();
    for (index, header) in list_in(get, at, "httpHeaders")?.unwrap_or_default().iter().enumerate() {
        let at = format!("{at}.httpHeaders[{index}]");
        let header = as_object(header, &at)?;
        let text = |key: &str| Ok::<_, InjectError>(text_in(header, &at, key)?.unwrap_or_default());
        headers.push(json!([text("name")?, text("value")?]));
    }
    Ok(headers)
}

/// What the kubelet still does in plaintext, and a strict policy refuses.
pub(crate) fn hook_warnings(pod: &Pod<'_>) -> Result<Vec<String>, InjectError> {
    let mut warnings = Vec::new();
    for container in &pod.containers {
        let Some(lifecycle) = object_in(container.object, &container.at, "lifecycle")? else { continue };
        let at = format!("{}.lifecycle", container.at);
        for hook in ["postStart", "preStop"] {
            let Some(handler) = object_in(lifecycle, &at, hook)? else { continue };
            if ["httpGet", "tcpSocket"].iter().any(|kind| handler.get(*kind).is_some_and(|value| !value.is_null())) {
                warnings.push(format!("{at}.{hook} comes from the node in plaintext: strict mTLS refuses it; use exec"));
            }
        }
    }
    Ok(warnings)
}
