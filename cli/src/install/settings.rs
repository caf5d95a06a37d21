//! What an installation can be told. One table makes the flags, the record in the cluster and the chart's values.

use std::fmt::Display;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;
use serde_json::{Map, Value};
use weft_core::authorization::Posture;
use weft_core::egress::EgressDefault;
use weft_core::policy::MtlsMode;
use weft_core::wellknown::CONTROL_PLANE_NAMESPACE;
use weft_core::{Name, TrustDomain};

use super::VERSION;

/// One thing that can be set: its name, default and meaning, and how it is read.
pub(crate) struct Setting {
    /// As the chart's values and the record in the cluster have it.
    pub(crate) key: &'static str,
    pub(crate) default: &'static str,
    pub(crate) help: &'static str,
    /// Checks a text and gives it its plain form.
    pub(crate) read: fn(&str) -> Result<String, String>,
    /// What it may read, as a regular expression; only the chart's schema uses it.
    pub(crate) pattern: &'static str,
    flag: fn(&Flags) -> Option<String>,
    slot: fn(&mut Settings) -> &mut String,
    get: fn(&Settings) -> &String,
}

impl Setting {
    /// What a flag's help says.
    fn described(&self) -> String {
        format!("{} [default: {}]", self.help, self.default)
    }
}

macro_rules! setting {
    ($field:ident, $key:literal, $default:literal, $read:expr, $pattern:literal, $help:literal) => {
        Setting {
            key: $key,
            default: $default,
            help: $help,
            read: $read,
            pattern: $pattern,
            flag: |flags| flags.$field.clone(),
            slot: |settings| &mut settings.$field,
            get: |settings| &settings.$field,
        }
    };
}

pub(crate) const IMAGE: Setting = setting!(
    image,
    "image",
    "weft.local/weft",
    image,
    "^[^\\s\"'\\\\{}]+$",
    "Image with weft's programs; without a tag, that of this version"
);
pub(crate) const IMAGE_PULL_POLICY: Setting = setting!(
    image_pull_policy,
    "imagePullPolicy",
    "IfNotPresent",
    |text| one_of(&["Always", "IfNotPresent", "Never"], text),
    "^(Always|IfNotPresent|Never)$",
    "When nodes pull the image: Always, IfNotPresent or Never"
);
const REPLICAS: Setting =
    setting!(replicas, "replicas", "2", replicas, "^[1-9][0-9]?$", "How many pods the control plane and the injector have, each");
pub(crate) const TRUST_DOMAIN: Setting = setting!(
    trust_domain,
    "trustDomain",
    "cluster.local",
    plain::<TrustDomain>,
    "^[a-z0-9._-]{1,255}$",
    "Trust domain of every identity that is issued"
);
const MTLS: Setting = setting!(
    mtls,
    "mtls",
    "permissive",
    plain::<MtlsMode>,
    "^(strict|permissive)$",
    "mTLS mode where neither namespace, pod nor port says otherwise: strict or permissive"
);
const DEFAULT_POLICY: Setting = setting!(
    default_policy,
    "defaultPolicy",
    "allow",
    plain::<Posture>,
    "^(allow|allow-authenticated|allow-same-namespace|deny)$",
    "Who may call a pod where neither its namespace nor an AuthorizationPolicy says so: allow, allow-authenticated, \
     allow-same-namespace or deny"
);
const EGRESS: Setting = setting!(
    egress,
    "egress",
    "allow",
    plain::<EgressDefault>,
    "^(allow|deny)$",
    "What becomes of destinations outside of the mesh that no ExternalService names, where a namespace does not say so: allow or deny"
);
const MESH_RANGES: Setting = setting!(
    mesh_ranges,
    "meshRanges",
    "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7",
    ranges,
    "^[0-9a-fA-F:./]+(,[0-9a-fA-F:./]+)*$",
    "CIDRs, joined by commas, inside which a sidecar never dials in plaintext what discovery does not answer for"
);
pub(crate) const NATIVE_SIDECARS: Setting = setting!(
    native_sidecars,
    "nativeSidecars",
    "auto",
    |text| one_of(&["auto", "always", "never"], text),
    "^(auto|always|never)$",
    "Sidecars as init containers that stay (auto: from Kubernetes 1.32 on, when every node has them): auto, always or never"
);
const CA_SECRET: Setting = setting!(
    ca_secret,
    "caSecret",
    "weft-ca",
    plain::<Name>,
    "^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$",
    "Secret with the CA (tls.crt, tls.key, ca.crt, as cert-manager writes it); the control plane makes it where it is not there"
);
const FAILURE_POLICY: Setting = setting!(
    failure_policy,
    "failurePolicy",
    "Fail",
    |text| one_of(&["Fail", "Ignore"], text),
    "^(Fail|Ignore)$",
    "What becomes of a meshed pod that is created while no injector answers: Fail (refused) or Ignore (runs outside of the mesh)"
);

/// The key of [`CNI`]: in a chart, a value that is true or false.
pub(crate) const CNI_KEY: &str = "cni";
const CNI: Setting = setting!(
    cni,
    "cni",
    "false",
    |text| one_of(&["true", "false"], text),
    "^(true|false)$",
    "Redirect pods by a CNI plugin on each node, so that they need no privilege for it: true or false"
);
const CNI_BIN_DIR: Setting = setting!(
    cni_bin_dir,
    "cniBinDir",
    "/opt/cni/bin",
    directory,
    "^/[A-Za-z0-9._/-]+$",
    "Where the nodes' container runtime has its CNI plugins; only with cni"
);
const CNI_CONF_DIR: Setting = setting!(
    cni_conf_dir,
    "cniConfDir",
    "/etc/cni/net.d",
    directory,
    "^/[A-Za-z0-9._/-]+$",
    "Where the nodes' container runtime has its network configurations; only with cni"
);
const CNI_REPAIR: Setting = setting!(
    cni_repair,
    "cniRepair",
    "delete",
    |text| one_of(&["delete", "never"], text),
    "^(delete|never)$",
    "What becomes of a pod that started before the plugin was on its node, and so waits: delete (its controller makes it anew) or \
     never (it is counted and logged). For delete, the agents have the right to delete any pod of the cluster; only with cni"
);

/// Beside the flag, which may be given several times, each of them one variable.
const TELEMETRY: Setting = Setting {
    key: "telemetry",
    default: "",
    help: "Telemetry of all sidecars whose pod and namespace say nothing of it, and of the control plane's metrics: NAME=VALUE, joined by semicolons: OTEL_… \
           and WEFT_ACCESS_LOG…. It stands in the cluster in the clear: give no secret",
    read: telemetry,
    pattern: "^((OTEL_[A-Z0-9_]+|WEFT_ACCESS_LOG[A-Z_]*|WEFT_TRACE_ERRORS)=[^;\"'\\\\{}]*(;(OTEL_[A-Z0-9_]+|WEFT_ACCESS_LOG[A-Z_]*|WEFT_TRACE_ERRORS)=[^;\"'\\\\{}]*)*)?$",
    flag: |flags| (!flags.telemetry.is_empty()).then(|| joined(&flags.telemetry)),
    slot: |settings| &mut settings.telemetry,
    get: |settings| &settings.telemetry,
};

/// Everything that can be set, in the order in which it is shown.
pub(crate) const TABLE: [Setting; 16] = [
    IMAGE,
    IMAGE_PULL_POLICY,
    REPLICAS,
    TRUST_DOMAIN,
    MTLS,
    DEFAULT_POLICY,
    EGRESS,
    MESH_RANGES,
    NATIVE_SIDECARS,
    CA_SECRET,
    FAILURE_POLICY,
    CNI,
    CNI_BIN_DIR,
    CNI_CONF_DIR,
    CNI_REPAIR,
    TELEMETRY,
];

/// What of [`TABLE`] the command line says.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Flags {
    #[arg(long, value_name = "IMAGE", value_parser = IMAGE.read, help = IMAGE.described())]
    image: Option<String>,
    #[arg(long, value_name = "POLICY", value_parser = IMAGE_PULL_POLICY.read, help = IMAGE_PULL_POLICY.described())]
    image_pull_policy: Option<String>,
    #[arg(long, value_name = "N", value_parser = REPLICAS.read, help = REPLICAS.described())]
    replicas: Option<String>,
    #[arg(long, value_name = "DOMAIN", value_parser = TRUST_DOMAIN.read, help = TRUST_DOMAIN.described())]
    trust_domain: Option<String>,
    #[arg(long, value_name = "MODE", value_parser = MTLS.read, help = MTLS.described())]
    mtls: Option<String>,
    #[arg(long, value_name = "POLICY", value_parser = DEFAULT_POLICY.read, help = DEFAULT_POLICY.described())]
    default_policy: Option<String>,
    #[arg(long, value_name = "DEFAULT", value_parser = EGRESS.read, help = EGRESS.described())]
    egress: Option<String>,
    #[arg(long, value_name = "CIDR,…", value_parser = MESH_RANGES.read, help = MESH_RANGES.described())]
    mesh_ranges: Option<String>,
    #[arg(long, value_name = "WHEN", value_parser = NATIVE_SIDECARS.read, help = NATIVE_SIDECARS.described())]
    native_sidecars: Option<String>,
    #[arg(long, value_name = "NAME", value_parser = CA_SECRET.read, help = CA_SECRET.described())]
    ca_secret: Option<String>,
    #[arg(long, value_name = "POLICY", value_parser = FAILURE_POLICY.read, help = FAILURE_POLICY.described())]
    failure_policy: Option<String>,
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = CNI.read,
        help = CNI.described()
    )]
    cni: Option<String>,
    #[arg(long, value_name = "DIR", value_parser = CNI_BIN_DIR.read, help = CNI_BIN_DIR.described())]
    cni_bin_dir: Option<String>,
    #[arg(long, value_name = "DIR", value_parser = CNI_CONF_DIR.read, help = CNI_CONF_DIR.described())]
    cni_conf_dir: Option<String>,
    #[arg(long, value_name = "HOW", value_parser = CNI_REPAIR.read, help = CNI_REPAIR.described())]
    cni_repair: Option<String>,
    #[arg(long, value_name = "VAR=VALUE", value_parser = TELEMETRY.read, help = TELEMETRY_HELP)]
    telemetry: Vec<String>,
}

const TELEMETRY_HELP: &str = "A variable of the telemetry of all sidecars whose pod and namespace say nothing of it, and of the control plane's metrics: OTEL_… or \
    WEFT_ACCESS_LOG…; several may be given. It stands in the cluster in the clear: give no secret";

/// Everything that can be set, read and checked, as texts: they go into manifests as they are, and a chart has its
/// placeholders in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Whose name is part of the control plane's identity, and so cannot be chosen.
    pub(crate) namespace: String,
    pub(crate) image: String,
    pub(crate) image_pull_policy: String,
    pub(crate) replicas: String,
    pub(crate) trust_domain: String,
    pub(crate) mtls: String,
    pub(crate) default_policy: String,
    pub(crate) egress: String,
    pub(crate) mesh_ranges: String,
    pub(crate) native_sidecars: String,
    pub(crate) ca_secret: String,
    pub(crate) failure_policy: String,
    pub(crate) cni: String,
    pub(crate) cni_bin_dir: String,
    pub(crate) cni_conf_dir: String,
    pub(crate) cni_repair: String,
    pub(crate) telemetry: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self::filled(CONTROL_PLANE_NAMESPACE, |setting| (setting.read)(setting.default).expect("the defaults are valid"))
    }
}

impl Settings {
    /// With each setting as `value` has it.
    pub(super) fn filled(namespace: &str, value: impl Fn(&Setting) -> String) -> Self {
        let mut settings = Self {
            namespace: namespace.to_owned(),
            image: String::new(),
            image_pull_policy: String::new(),
            replicas: String::new(),
            trust_domain: String::new(),
            mtls: String::new(),
            default_policy: String::new(),
            egress: String::new(),
            mesh_ranges: String::new(),
            native_sidecars: String::new(),
            ca_secret: String::new(),
            failure_policy: String::new(),
            cni: String::new(),
            cni_bin_dir: String::new(),
            cni_conf_dir: String::new(),
            cni_repair: String::new(),
            telemetry: String::new(),
        };
        for setting in &TABLE {
            *(setting.slot)(&mut settings) = value(setting);
        }
        settings
    }

    /// These settings, with what the command line says in their place.
    pub(crate) fn with(mut self, flags: &Flags) -> Self {
        for setting in &TABLE {
            if let Some(given) = (setting.flag)(flags) {
                *(setting.slot)(&mut self) = given;
            }
        }
        self
    }

    /// Whether the CNI plugin redirects. A chart has it both ways, each with its condition.
    pub(crate) fn has_cni(&self) -> bool {
        self.cni != "false"
    }

    /// Whether the plugin's agents delete pods; see [`Self::has_cni`].
    pub(crate) fn has_cni_repair(&self) -> bool {
        self.has_cni() && self.cni_repair != "never"
    }

    /// `with` where the plugin redirects, `without` where it does not; in a chart, what decides when it is installed.
    pub(crate) fn by_cni(&self, with: &str, without: &str) -> String {
        match self.cni.as_str() {
            "true" => with.to_owned(),
            "false" => without.to_owned(),
            _ => format!("{{{{ ternary \"{with}\" \"{without}\" .Values.{CNI_KEY} }}}}"),
        }
    }

    /// Every setting by its key, with the version that they were written by: how an upgrade knows them again.
    pub(crate) fn record(&self) -> Value {
        let mut record: Map<String, Value> =
            TABLE.iter().map(|setting| (setting.key.to_owned(), Value::from((setting.get)(self).as_str()))).collect();
        record.insert(VERSION_KEY.to_owned(), VERSION.into());
        Value::Object(record)
    }

    /// Reads a record again. What it lacks has its default, and an image of its own version becomes one of this
    /// version, while one with another tag stays.
    #[cfg_attr(not(any(test, feature = "kubernetes")), expect(dead_code, reason = "only a client finds a record"))]
    pub(crate) fn recorded(record: &Value) -> Result<Self, String> {
        let mut settings = Self::default();
        for setting in &TABLE {
            let Some(text) = record.get(setting.key).and_then(Value::as_str) else { continue };
            *(setting.slot)(&mut settings) =
                (setting.read)(text).map_err(|why| format!("{} {text:?} can't be used: {why}", setting.key))?;
        }
        let version = record.get(VERSION_KEY).and_then(Value::as_str).unwrap_or(VERSION);
        if let Some(repository) = settings.image.strip_suffix(&format!(":{version}")) {
            settings.image = format!("{repository}:{VERSION}");
        }
        Ok(settings)
    }
}

/// Where a record has the version that wrote it.
pub(crate) const VERSION_KEY: &str = "version";

/// What a type makes of a text, as a text.
fn plain<T: FromStr<Err: Display> + Display>(text: &str) -> Result<String, String> {
    match text.parse::<T>() {
        Ok(value) => Ok(value.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// An image's reference, with this version's tag where it has none.
fn image(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control() || "{}\"'\\".contains(c)) {
        return Err(format!("{text:?} is no image: write REPOSITORY[:TAG] or REPOSITORY@DIGEST"));
    }
    // A colon before the last slash belongs to the registry's port.
    let last = text.rsplit('/').next().unwrap_or(text);
    Ok(if last.contains([':', '@']) { text.to_owned() } else { format!("{text}:{VERSION}") })
}

/// An absolute path of a directory that is not the root, without parts that lead elsewhere.
fn directory(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
    let path = text.trim_end_matches('/');
    if path.starts_with('/') && path.chars().all(plain) && !path.split('/').any(|part| part == "..") {
        return Ok(path.to_owned());
    }
    Err(format!("{text:?} is no directory that can be used: write an absolute path, of letters, digits and ._-/"))
}

/// Variables of telemetry, joined by semicolons. The injector knows which values each takes.
fn telemetry(text: &str) -> Result<String, String> {
    let mut found = Vec::new();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').ok_or("write NAME=VALUE")?;
        let rest = name
            .strip_prefix("OTEL_")
            .or_else(|| name.strip_prefix("WEFT_ACCESS_LOG"))
            .or_else(|| name.strip_prefix("WEFT_TRACE_ERRORS"));
        if !rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')) {
            return Err(format!(
                "{name:?} is no variable of telemetry: those are OTEL_…, WEFT_ACCESS_LOG… and WEFT_TRACE_ERRORS"
            ));
        }
        // The chart has it in quotes.
        if value.chars().any(|c| c.is_control() || "\"'\\{}".contains(c)) {
            return Err(format!("the value of {name} has a quote, a brace, a backslash or a control character in it"));
        }
        found.push(format!("{name}={value}"));
    }
    Ok(found.join(";"))
}

/// Variables that were given one by one: of two of one name, the later one.
fn joined(given: &[String]) -> String {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for (name, value) in given.iter().flat_map(|text| text.split(';')).filter_map(|part| part.split_once('=')) {
        all.retain(|(other, _)| *other != name);
        all.push((name, value));
    }
    all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(";")
}

fn replicas(text: &str) -> Result<String, String> {
    match text.parse::<u8>() {
        Ok(count) if (1..=99).contains(&count) => Ok(count.to_string()),
        _ => Err(format!("{text:?} is not a number from 1 to 99")),
    }
}

fn ranges(text: &str) -> Result<String, String> {
    let networks: Result<Vec<String>, String> = text
        .split(',')
        .map(|part| {
            let network: IpNet = part.trim().parse().map_err(|_| format!("{part:?} is no CIDR: write 10.0.0.0/8,fc00::/7"))?;
            Ok(network.trunc().to_string())
        })
        .collect();
    networks.map(|networks| networks.join(","))
}

fn one_of(words: &[&str], text: &str) -> Result<String, String> {
    match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
        Some(word) => Ok((*word).to_owned()),
        None => Err(format!("{text:?} is none of {}", words.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_gets_this_versions() {
        let tagged = |repository: &str| Ok(format!("{repository}:{VERSION}"));
        assert_eq!(image("weft"), tagged("weft"));
        assert_eq!(image("registry.example:5000/mesh/weft"), tagged("registry.example:5000/mesh/weft"));
        for whole in ["weft:1", "registry.example:5000/weft:main", "weft@sha256:00ff"] {
            assert_eq!(image(whole), Ok(whole.to_owned()));
        }
        for bad in ["", "we ft", "weft:\"1\"", "{{ .Values.x }}", "weft\n"] {
            assert!(image(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn what_is_read_takes_its_plain_form() {
        assert_eq!(ranges("10.1.2.3/8, FC00::/7"), Ok("10.0.0.0/8,fc00::/7".to_owned()));
        assert_eq!(replicas("03"), Ok("3".to_owned()));
        assert_eq!(one_of(&["Fail", "Ignore"], "fail"), Ok("Fail".to_owned()));
        assert_eq!(directory("/var/lib/cni/bin/"), Ok("/var/lib/cni/bin".to_owned()));
        for (setting, bad) in [
            (&REPLICAS, "0"),
            (&REPLICAS, "100"),
            (&REPLICAS, "two"),
            (&MTLS, "loose"),
            (&TRUST_DOMAIN, "Example.org"),
            (&MESH_RANGES, ""),
            (&MESH_RANGES, "10.0.0.0"),
            (&CA_SECRET, "My_Secret"),
            (&FAILURE_POLICY, "Maybe"),
            (&NATIVE_SIDECARS, "yes"),
            (&IMAGE_PULL_POLICY, "Sometimes"),
            (&CNI, "maybe"),
            (&CNI_BIN_DIR, "opt/cni/bin"),
            (&CNI_BIN_DIR, "/"),
            (&CNI_CONF_DIR, "/etc/../cni"),
            (&CNI_CONF_DIR, "/etc/cni\"net.d"),
            (&CNI_REPAIR, "always"),
            (&TELEMETRY, "WEFT_MARK=1"),
            (&TELEMETRY, "OTEL_A"),
            (&TELEMETRY, "OTEL_A=\"{{ x }}\""),
        ] {
            assert!((setting.read)(bad).is_err(), "{} took {bad:?}", setting.key);
        }
    }

    #[test]
    fn a_record_gives_the_settings_again_and_flags_win() {
        let flags = Flags { mtls: Some("strict".to_owned()), replicas: Some("3".to_owned()), ..Flags::default() };
        let settings = Settings::default().with(&flags);
        assert_eq!((settings.mtls.as_str(), settings.replicas.as_str()), ("strict", "3"));
        assert_eq!(Settings::recorded(&settings.record()), Ok(settings.clone()));
        let later = Flags { mtls: Some("permissive".to_owned()), ..Flags::default() };
        let upgraded = Settings::recorded(&settings.record()).expect("a record").with(&later);
        assert_eq!((upgraded.mtls.as_str(), upgraded.replicas.as_str()), ("permissive", "3"));
    }

    #[test]
    fn telemetry_is_kept_by_an_upgrade_and_replaced_by_its_flags() {
        let flags = |all: &[&str]| Flags {
            telemetry: all.iter().map(|text| telemetry(text).expect("good")).collect(),
            ..Flags::default()
        };
        let settings =
            Settings::default().with(&flags(&["OTEL_TRACES_SAMPLER=always_on", "WEFT_ACCESS_LOG=json", "WEFT_ACCESS_LOG=text"]));
        assert_eq!(settings.telemetry, "OTEL_TRACES_SAMPLER=always_on;WEFT_ACCESS_LOG=text");
        let kept = Settings::recorded(&settings.record()).expect("a record");
        assert_eq!(kept.clone().with(&Flags::default()).telemetry, settings.telemetry);
        assert_eq!(kept.with(&flags(&[""])).telemetry, "", "an empty one takes it away");
    }

    #[test]
    fn an_upgrade_moves_the_image_with_the_version_unless_it_is_pinned() {
        let of = |image: &str| {
            let mut record = Settings::default().record();
            record[VERSION_KEY] = "0.0.9".into();
            record["image"] = image.into();
            Settings::recorded(&record).expect("a record").image
        };
        assert_eq!(of("example.com/weft:0.0.9"), format!("example.com/weft:{VERSION}"));
        assert_eq!(of("example.com/weft:patched"), "example.com/weft:patched");
        let mut broken = Settings::default().record();
        broken["mtls"] = "off".into();
        assert!(Settings::recorded(&broken).expect_err("a mode that is none").starts_with("mtls \"off\" can't be used"));
    }
}
