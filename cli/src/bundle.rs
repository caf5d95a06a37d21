//! `weft bundle`: one archive with all that somebody else needs to find a fault, and without secrets.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use weft_core::Namespace;

use crate::fleet::{Fleet, kubectl};
use crate::install::VERSION;
use crate::rundir::{self, Which};
use crate::{check, duration, operator, status};

mod scrub;
mod tar;

/// What `weft bundle` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
In it: what weft check finds, versions, the control plane's status, of every sidecar its configuration, counters, denials and view, manifests of pods, Services and weft's \
kinds, and on a cluster the logs of weft's programs. Not in it: private keys, tokens, Secrets, values of environment variables, arguments of programs other than weft's, \
telemetry's settings, values of claims and header fields, queries of paths, and bodies; what looks like a password, a key or a token is removed wherever it stands. Look through it all the same before you send it: names of workloads, hosts and paths are in it.

Examples:
  weft bundle
  weft bundle --file /tmp/case-17.tar.gz -n shop
  tar tzf weft-bundle.tar.gz")]
pub(crate) struct BundleArgs {
    /// The archive; an older one of that name is replaced
    #[arg(long, value_name = "FILE", default_value = "weft-bundle.tar.gz")]
    file: PathBuf,

    /// Only the sidecars of this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<Namespace>,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,
}

/// What each sidecar is asked.
const ASKED: [(&str, &str); 7] = [
    ("/config", "config.json"),
    ("/check", "check.json"),
    ("/held", "held.json"),
    ("/edges", "edges.json"),
    ("/denials", "denials.json"),
    ("/plaintext", "plaintext.json"),
    ("/metrics", "metrics.txt"),
];
/// Kinds whose objects are put in, of a cluster.
const KINDS: [&str; 13] = [
    "pods",
    "services",
    "endpointslices.discovery.k8s.io",
    "networkpolicies.networking.k8s.io",
    "authorizationpolicies.weft.dev",
    "mtlspolicies.weft.dev",
    "trafficpolicies.weft.dev",
    "externalservices.weft.dev",
    "jwtissuers.weft.dev",
    "httproutes.gateway.networking.k8s.io",
    "grpcroutes.gateway.networking.k8s.io",
    "deployments.apps",
    "events",
];
/// Lines of each log.
const LOG_LINES: &str = "--tail=2000";
/// weft's own programs, whose logs are put in.
const PROGRAMS: [&str; 3] = ["deployment/weft-control-plane", "deployment/weft-injector", "daemonset/weft-cni"];
const HOME: &str = "weft-system";

/// Files of an archive, by name.
struct Contents {
    files: Vec<(String, String)>,
}

impl Contents {
    /// Adds a file, without the secrets that may be in it; or, where there is none, why.
    fn add(&mut self, name: impl Into<String>, text: anyhow::Result<String>) {
        let name = name.into();
        match text {
            Ok(text) => {
                let cleaned = scrub::clean(&name, &text);
                self.files.push((name, cleaned));
            }
            Err(why) => self.files.push((format!("{name}.missing"), scrub::clean("", &format!("{why:#}\n")))),
        }
    }
}

pub(crate) fn main(args: &BundleArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let contents = gather(&fleet, args.namespace.as_ref());
    write(&args.file, &contents.files).with_context(|| format!("{} can't be written", args.file.display()))?;
    let size = std::fs::metadata(&args.file).map_or(0, |m| m.len());
    let missing: Vec<&str> = contents.files.iter().filter_map(|(name, _)| name.strip_suffix(".missing")).collect();
    if let Some(first) = missing.first() {
        crate::complain(&format!(
            "{} files could not be had, as {first}: {first}.missing in the archive says why",
            missing.len()
        ));
    }
    crate::output::print(&format!(
        "{}: {} files, {} KiB, secrets removed\n",
        args.file.display(),
        contents.files.len(),
        size.div_ceil(1024)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that can be had; what cannot is told in its place.
fn gather(fleet: &Fleet, namespace: Option<&Namespace>) -> Contents {
    let mut all = Contents { files: Vec::new() };
    let pretty = |value: &Value| Ok(format!("{value:#}\n"));
    all.add(
        "bundle.json",
        pretty(&json!({"weft": VERSION, "madeAt": duration::now(), "namespace": namespace.map(ToString::to_string)})),
    );
    all.add(
        "check.json",
        check::findings(fleet, namespace, Duration::from_secs(2)).and_then(|found| Ok(serde_json::to_string_pretty(&found)?)),
    );
    let pods = fleet.sidecars(namespace).unwrap_or_else(|why| {
        all.add("sidecars", Err(why));
        Vec::new()
    });
    for (path, file) in ASKED {
        let answers = Fleet::each(&pods, |pod| fleet.ask_one(pod, "GET", path));
        for (pod, answer) in pods.iter().zip(answers) {
            all.add(format!("sidecars/{pod}/{file}"), answer);
        }
    }
    match fleet {
        Fleet::Run(run) => {
            all.add("status.json", status::json(run).and_then(|value| pretty(&value)));
            let trust = operator::ask(&run.join(rundir::OPERATOR_SOCKET), async |mut operator| operator.trust_status().await);
            all.add("trust.json", trust.and_then(|trust| pretty(&crate::trust::as_json(&trust))));
            manifests(&run.join(rundir::MANIFESTS), &mut all);
        }
        Fleet::Cluster(context) => {
            let context = context.as_deref();
            all.add("kubernetes/version.json", kubectl(context, &["version", "-o", "json"]));
            let place = namespace.map_or_else(|| vec!["-A"], |n| vec!["-n", n.as_str()]);
            for kind in KINDS {
                all.add(
                    format!("kubernetes/{kind}.json"),
                    kubectl(context, &[&["get", kind, "-o", "json"], &place[..]].concat()),
                );
            }
            for program in PROGRAMS {
                let words = ["logs", "-n", HOME, program, "--all-containers", "--prefix", LOG_LINES];
                all.add(format!("logs/{}.txt", program.replace('/', "-")), kubectl(context, &words));
            }
            for pod in &pods {
                let (namespace, name) = pod.split_once('/').unwrap_or(("", pod));
                let words = ["logs", "-n", namespace, name, "-c", weft_core::wellknown::SIDECAR_CONTAINER, LOG_LINES];
                all.add(format!("logs/sidecars/{pod}.txt"), kubectl(context, &words));
            }
        }
    }
    all
}

/// What the control plane of a mesh on this machine follows: weft's own files, and a directory below with the user's.
fn manifests(dir: &Path, all: &mut Contents) {
    for (below, dir) in std::iter::once((String::new(), dir.to_owned())).chain(directories(dir)) {
        for file in entries(&dir).iter().filter(|file| file.is_file()) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            all.add(format!("manifests/{below}{name}"), std::fs::read_to_string(file).context("it can't be read"));
        }
    }
}

fn directories(dir: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let found = entries(dir).into_iter().filter(|path| path.is_dir());
    found.map(|path| (format!("{}/", path.file_name().unwrap_or_default().to_string_lossy()), path))
}

/// What is in a directory and not hidden, in order.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(dir).map(|all| all.flatten().map(|e| e.path()).collect::<Vec<_>>()).unwrap_or_default();
    let is_hidden = |path: &Path| path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let mut found: Vec<PathBuf> = found.into_iter().filter(|path| !is_hidden(path)).collect();
    found.sort();
    found
}

/// Writes the archive, which nobody else may read, and puts it in its place when it is whole.
fn write(path: &Path, files: &[(String, String)]) -> anyhow::Result<()> {
    let name = path.file_name().context("it has no name")?.to_string_lossy().into_owned();
    // In a directory where others may write, a name that can be guessed could be theirs.
    let temporary = path.with_file_name(format!(".{name}.{:016x}", RandomState::new().hash_one(std::process::id())));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let outcome = fill(file, files).and_then(|()| Ok(std::fs::rename(&temporary, path)?));
    if outcome.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    outcome
}

fn fill(file: File, files: &[(String, String)]) -> anyhow::Result<()> {
    let mut gz = GzEncoder::new(file, Compression::default());
    let at = u64::try_from(duration::now()).unwrap_or(0);
    let mut long = String::new();
    for (i, (name, text)) in files.iter().enumerate() {
        let full = format!("weft-bundle/{name}");
        if tar::takes(&full) {
            gz.write_all(&tar::entry(&full, text.as_bytes(), at)?)?;
        } else {
            let short = format!("long-names/{i}-{}", name.rsplit('/').next().unwrap_or_default());
            let short = if tar::takes(&format!("weft-bundle/{short}")) { short } else { format!("long-names/{i}") };
            let _ = writeln!(long, "{short}: {name}");
            gz.write_all(&tar::entry(&format!("weft-bundle/{short}"), text.as_bytes(), at)?)?;
        }
    }
    if !long.is_empty() {
        gz.write_all(&tar::entry("weft-bundle/long-names.txt", long.as_bytes(), at)?)?;
    }
    gz.write_all(&tar::END)?;
    gz.finish()?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_archive_has_its_files_and_no_secret() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("bundle.tar.gz");
        let mut all = Contents { files: Vec::new() };
        let key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEG\n-----END PRIVATE KEY-----\n";
        all.add("a.txt", Ok(format!("before\n{key}after\n")));
        all.add("b.json", Err(anyhow::anyhow!("the token eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln is bad")));
        write(&file, &all.files).expect("written");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(File::open(&file).expect("there")).read_to_end(&mut bytes).expect("gzip");
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("weft-bundle/a.txt")
                && text.contains("before")
                && text.contains("after")
                && text.contains("b.json.missing")
        );
        assert!(!text.contains("MIGHAgEA") && !text.contains("c2ln"), "{text}");
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(File::open(&file).and_then(|f| f.metadata()).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_followed_or_left_and_a_long_name_ends_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("bundle.tar.gz");
        let others = dir.path().join("others");
        std::fs::write(&others, "theirs").expect("written");
        for name in ["bundle.tar.partial", ".bundle.tar.gz.partial"] {
            std::os::unix::fs::symlink(&others, dir.path().join(name)).expect("linked");
        }
        let long = format!("sidecars/{}/config.json", "x".repeat(253));
        write(&file, &[(long.clone(), "{}".to_owned())]).expect("written");
        assert_eq!(std::fs::read_to_string(&others).expect("there"), "theirs");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(File::open(&file).expect("there")).read_to_end(&mut bytes).expect("gzip");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(&format!("long-names/0-config.json: {long}")), "{text}");
        assert!(write(&dir.path().join("others/x"), &[]).is_err());
        std::fs::create_dir(dir.path().join("taken")).expect("made");
        assert!(write(&dir.path().join("taken"), &[]).is_err(), "a directory stands there");
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 5, "what could not be put in its place is removed");
    }

    #[test]
    fn manifests_of_the_user_are_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("extra")).expect("made");
        std::fs::write(dir.path().join("pod.json"), "{}").expect("written");
        std::fs::write(dir.path().join(".hidden"), "x").expect("written");
        std::fs::write(dir.path().join("extra/policies.yaml"), "kind: AuthorizationPolicy\n").expect("written");
        let mut all = Contents { files: Vec::new() };
        manifests(dir.path(), &mut all);
        let names: Vec<&str> = all.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["manifests/pod.json", "manifests/extra/policies.yaml"]);
    }
}
