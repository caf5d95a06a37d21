//! The words of the Container Network Interface (CNI specification 1.0.0 and 1.1.0, section 2): what the runtime says by its
//! environment and standard input, and how a plugin answers.

use std::collections::BTreeMap;
use std::env;

use serde_json::{Map, Value, json};

/// Versions of the specification whose calls are understood. What passes through is not looked into, so that they do not differ.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version to answer in, where the call's own cannot be read.
const FALLBACK: &str = "1.0.0";

/// What the runtime wants (section 2, "CNI operations").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A container joins the network.
    Add,
    /// A container leaves it.
    Del,
    /// Whether a container's network is as it should be; since 0.4.0.
    Check,
    /// Whether containers can be added; since 1.1.0.
    Status,
    /// Clean up after containers that are gone; since 1.1.0.
    Gc,
    /// Which versions the plugin speaks.
    Version,
}

impl Operation {
    /// The operation that `CNI_COMMAND` names.
    pub fn read(word: &str) -> Result<Self, CniError> {
        match word {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "STATUS" => Ok(Self::Status),
            "GC" => Ok(Self::Gc),
            "VERSION" => Ok(Self::Version),
            _ => Err(CniError::new(Code::Environment, format!("CNI_COMMAND {word:?} is no operation of CNI"))),
        }
    }

    /// Whether a version of the specification has it.
    pub fn is_in(self, version: &str) -> bool {
        match self {
            Self::Add | Self::Del | Self::Version => true,
            Self::Check => version != "0.3.1",
            Self::Status | Self::Gc => version == "1.1.0",
        }
    }
}

/// What kind of failure it is (section 5, "Error").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The version of the configuration is not spoken here.
    Version = 1,
    /// A variable of the environment is missing or malformed.
    Environment = 4,
    /// Something could not be read or written.
    Io = 5,
    /// Standard input is no JSON.
    Decode = 6,
    /// The configuration is not one that this plugin can work with.
    Configuration = 7,
    /// What is in the way goes away: the runtime shall try again.
    TryAgain = 11,
    /// Our own: the redirect was refused, and trying again as it is will not help.
    Refused = 100,
    /// Our own: the redirect is not in place.
    NotInForce = 101,
}

/// A failure as the runtime is told of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// Its kind.
    pub code: Code,
    /// What went wrong and how to mend it.
    pub message: String,
}

impl CniError {
    /// A failure.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What is printed to standard output, in the version of the call.
    pub fn shown(&self, version: Option<&str>) -> Value {
        json!({ "cniVersion": version.unwrap_or(FALLBACK), "code": self.code as u32, "msg": format!("weft: {}", self.message) })
    }
}

/// What `VERSION` prints.
pub fn versions(asked: Option<&str>) -> Value {
    json!({ "cniVersion": asked.unwrap_or(FALLBACK), "supportedVersions": VERSIONS })
}

/// The environment of a call; what is not there is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`: the path of the network namespace.
    pub netns: String,
    /// `CNI_ARGS`: pairs `KEY=VALUE`, joined by semicolons.
    pub arguments: BTreeMap<String, String>,
}

impl Environment {
    /// That of this process.
    pub fn of_this_process() -> Self {
        Self::read(|name| env::var(name).ok())
    }

    /// What `variable` says.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name| variable(name).unwrap_or_default();
        let pairs = text("CNI_ARGS");
        let pairs = pairs.split(';').filter_map(|pair| pair.split_once('='));
        Self {
            command: text("CNI_COMMAND"),
            container: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            arguments: pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect(),
        }
    }

    /// An argument that is there and not empty.
    pub fn argument(&self, key: &str) -> Option<&str> {
        self.arguments.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// Reads standard input: an object, whose `cniVersion` is one of ours.
pub fn configuration(input: &[u8]) -> Result<Map<String, Value>, CniError> {
    serde_json::from_slice(input).map_err(|error| {
        CniError::new(Code::Decode, format!("the network configuration on standard input can't be read: {error}"))
    })
}

/// The version of a configuration, which must be one of [`VERSIONS`].
pub fn version(configuration: &Map<String, Value>) -> Result<&str, CniError> {
    let version = configuration.get("cniVersion").and_then(Value::as_str);
    match version {
        Some(version) if VERSIONS.contains(&version) => Ok(version),
        _ => {
            let (said, ours) = (version.unwrap_or("(none)"), VERSIONS.join(", "));
            Err(CniError::new(
                Code::Version,
                format!("the network configuration's cniVersion is {said}, and must be one of {ours}"),
            ))
        }
    }
}
