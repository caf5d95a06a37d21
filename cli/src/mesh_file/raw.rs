//! The file as it is written, before anything is checked. Unknown fields are errors.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_path_to_error::Segment;
use serde_saphyr::Spanned;
use weft_core::authorization::Posture;
use weft_core::egress::EgressDefault;
use weft_core::policy::MtlsMode;

use super::{Pairs, Problem, Restart, TargetPort};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawMesh {
    pub(super) name: Option<String>,
    pub(super) mtls: Option<Mode>,
    pub(super) default_policy: Option<DefaultPolicy>,
    pub(super) egress: Option<Egress>,
    pub(super) dns_capture: Option<bool>,
    #[serde(default)]
    pub(super) telemetry: Pairs,
    #[serde(default)]
    pub(super) namespaces: BTreeMap<String, Option<RawNamespace>>,
    pub(super) workloads: Vec<Spanned<RawWorkload>>,
    pub(super) services: Option<Vec<Spanned<RawService>>>,
    #[serde(default)]
    pub(super) manifests: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawNamespace {
    pub(super) mtls: Option<Mode>,
    pub(super) default_policy: Option<DefaultPolicy>,
    pub(super) egress: Option<Egress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawWorkload {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) replicas: Option<u16>,
    pub(super) command: CommandLine,
    pub(super) workdir: Option<String>,
    #[serde(default)]
    pub(super) env: Pairs,
    #[serde(default)]
    pub(super) ports: Vec<Spanned<RawPort>>,
    pub(super) labels: Option<Pairs>,
    pub(super) mtls: Option<Mode>,
    pub(super) sidecar: Option<bool>,
    #[serde(default)]
    pub(super) workload_api: bool,
    pub(super) tap: Option<String>,
    pub(super) health: Option<RawHealth>,
    pub(super) restart: Option<Restart>,
    pub(super) user: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawPort {
    pub(super) name: Option<String>,
    pub(super) port: u16,
    pub(super) protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawHealth {
    pub(super) http: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) tcp: Option<u16>,
    pub(super) command: Option<CommandLine>,
    pub(super) interval: Option<Time>,
    pub(super) timeout: Option<Time>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawService {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) selector: Option<Pairs>,
    #[serde(default)]
    pub(super) ports: Vec<Spanned<RawServicePort>>,
    #[serde(default)]
    pub(super) headless: bool,
    pub(super) address: Option<Ipv4Addr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawServicePort {
    pub(super) name: Option<String>,
    pub(super) port: u16,
    pub(super) target_port: Option<TargetPort>,
    pub(super) protocol: Option<String>,
}

/// `strict` or `permissive`.
#[derive(Clone, Copy)]
pub(super) struct Mode(pub(super) MtlsMode);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// `allow`, `allow-authenticated`, `allow-same-namespace` or `deny`.
#[derive(Clone, Copy)]
pub(super) struct DefaultPolicy(pub(super) Posture);

impl<'de> Deserialize<'de> for DefaultPolicy {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// `allow` or `deny`.
#[derive(Clone, Copy)]
pub(super) struct Egress(pub(super) EgressDefault);

impl<'de> Deserialize<'de> for Egress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// `250ms`, `2s`, `5m` or `1h`.
#[derive(Clone, Copy)]
pub(super) struct Time(pub(super) Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        crate::duration::parse(&String::deserialize(d)?).map(Self).map_err(D::Error::custom)
    }
}

/// A list of words, or one text that a shell runs.
pub(super) struct CommandLine(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Words;

        impl<'de> Visitor<'de> for Words {
            type Value = CommandLine;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of words, or one text that sh runs")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<CommandLine, E> {
                Ok(CommandLine(vec!["sh".to_owned(), "-c".to_owned(), text.to_owned()]))
            }

            // `true` and `false` are programs too.
            fn visit_bool<E: Error>(self, word: bool) -> Result<CommandLine, E> {
                self.visit_str(if word { "true" } else { "false" })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<CommandLine, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element::<String>()? {
                    words.push(word);
                }
                Ok(CommandLine(words))
            }
        }

        d.deserialize_any(Words)
    }
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Self::Number).map_err(|_| D::Error::custom("not a whole number from 0 to 65535"));
        }
        Ok(Self::Name(text))
    }
}

/// Reads the text, or says what is the first thing that keeps it from being read. `file` is the name that it carries.
pub(super) fn parse(file: &str, text: &str) -> Result<RawMesh, Problem> {
    // A path of fields from one crate, line and column from the other.
    let mut field = String::new();
    serde_saphyr::with_deserializer_from_str(text, |d| {
        serde_path_to_error::deserialize(d).map_err(|e| {
            field = shown(e.path());
            e.into_inner()
        })
    })
    .map_err(|e: serde_saphyr::Error| {
        let line = e.location().map_or(1, |place| place.line()).max(1);
        // The place is said by the problem itself.
        let text = e.without_snippet().to_string();
        let first = text.lines().next().unwrap_or("not readable");
        let message =
            first.split(" at line ").next().unwrap_or(first).replace("invalid u16", "not a whole number from 0 to 65535");
        Problem { place: format!("{file}:{line}"), field: field.clone(), message }
    })
}

/// A path as the file has it. Reading an element of a list together with its line takes one step more, named `value`.
fn shown(path: &serde_path_to_error::Path) -> String {
    let mut text = String::new();
    let mut in_list = false;
    for segment in path {
        let after_index = std::mem::replace(&mut in_list, matches!(segment, Segment::Seq { .. }));
        match segment {
            Segment::Seq { index } => {
                let _ = write!(text, "[{index}]");
            }
            Segment::Map { key } if after_index && key == "value" => {}
            Segment::Map { key: word } | Segment::Enum { variant: word } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(word);
            }
            Segment::Unknown => {}
        }
    }
    text
}
