//! `weft validate`: manifests as the control plane would read them, without one: what is wrong with each, and what would become of
//! it. The reader and the model are the control plane's own.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use weft_control_plane::watch::{directory, parse};
use weft_core::authorization::Posture;
use weft_core::egress::EgressDefault;
use weft_core::policy::MtlsMode;

use crate::lab::extras;
use crate::manifests;
use crate::mesh_file::{self, Mesh};
use crate::output::Output;
use crate::plan::Plan;
use report::Report;

mod report;

/// What `weft validate` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
What a route or a policy refers to is looked for among the same manifests: give those of its services as well, or the mesh.yaml that \
has them, which brings its own manifests along. Kinds that weft does not read, as a Deployment, are passed over.

Exit status: 0 where nothing is wrong, 1 where something is, 2 where something cannot be read.

Examples:
  weft validate routes.yaml services.yaml
  weft validate manifests/
  weft validate mesh.yaml
  kustomize build . | weft validate -
  weft validate -o json manifests/ | jq '.problems[].message'")]
pub(crate) struct ValidateArgs {
    /// Files of manifests, directories of them, or what weft up takes; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    #[command(flatten)]
    output: Output,
}

/// A file: its name for people, and its text.
pub(crate) type File = (String, String);

/// What was named.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) files: Vec<File>,
    /// What the mesh has by default, where one of the files is a mesh's.
    pub(crate) defaults: Option<(MtlsMode, Posture, EgressDefault)>,
}

/// Whether a document that cannot be read is of a kind that weft has nothing to do with.
pub(crate) fn is_others(text: &str) -> bool {
    report::is_others(text)
}

pub(crate) fn main(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let files = match read(&args.files, false) {
        Ok(read) => read.files,
        Err(error) => {
            crate::complain(&format!("{error:#}"));
            return Ok(ExitCode::from(2));
        }
    };
    let report = Report::of(&files);
    args.output.print(|_| report.shown(), &report)?;
    Ok(ExitCode::from(u8::from(!report.is_good())))
}

/// Reads all that was named; a directory as the control plane reads one. Of a mesh's file, `pods` says whether what would run is wanted, too.
pub(crate) fn read(named: &[PathBuf], pods: bool) -> anyhow::Result<Read> {
    let Read { mut files, mut defaults } = Read::default();
    for path in named {
        if path.is_dir() {
            let (found, problems) = directory::manifests(path);
            if let Some(problem) = problems.first() {
                bail!("{problem}");
            }
            if found.is_empty() {
                bail!("{} has no manifests: they end in .yaml, .yml or .json", path.display());
            }
            for path in found {
                files.push(file(&path)?);
            }
        } else {
            let (name, text) = file(path)?;
            if mesh_file::is_one(&text) {
                defaults = Some(mesh(&mut files, path, &name, &text, pods)?);
            } else {
                files.push((name, text));
            }
        }
    }
    // A mesh may name manifests that were named as well.
    let mut known = BTreeSet::new();
    files.retain(|(name, _)| known.insert(name.clone()));
    Ok(Read { files, defaults })
}

/// What `weft up` would make of its file, and the manifests that it names; gives what the mesh has by default.
fn mesh(
    files: &mut Vec<File>,
    path: &Path,
    name: &str,
    text: &str,
    pods: bool,
) -> anyhow::Result<(MtlsMode, Posture, EgressDefault)> {
    let whole = path.canonicalize().with_context(|| format!("{name} can't be read"))?;
    let dir = whole.parent().context("the file is in no directory")?;
    let mesh = Mesh::read(name, dir, text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!(lines.join("\n"))
    })?;
    let plan = Plan::new(&mesh);
    let mut made: Vec<String> = manifests::fixed(&mesh, &plan).iter().map(|manifest| manifest.object.to_string()).collect();
    if pods {
        made.extend(plan.replicas.iter().map(|r| manifests::pod(&mesh.workloads[r.workload], r, true, false).object.to_string()));
    }
    files.push((format!("{name}, as manifests"), made.join("\n---\n")));
    for pattern in &mesh.manifests {
        for path in extras::expand(pattern).with_context(|| format!("{name}: manifests: {}", pattern.display()))? {
            // Named as whoever asks would name it.
            let shown = path.strip_prefix(std::env::current_dir()?).unwrap_or(&path).to_owned();
            files.push(file(&shown)?);
        }
    }
    Ok((mesh.mtls, mesh.default_policy, mesh.egress))
}

fn file(path: &Path) -> anyhow::Result<File> {
    let is_stdin = path == Path::new("-");
    let name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let named = || format!("{name} can't be read");
    let source: Box<dyn std::io::Read> =
        if is_stdin { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(path).with_context(named)?) };
    let mut text = String::new();
    source.take(parse::MAX_FILE + 1).read_to_string(&mut text).with_context(named)?;
    if text.len() as u64 > parse::MAX_FILE {
        bail!("{name} is larger than {} bytes, which is the most that weft reads: split it", parse::MAX_FILE);
    }
    Ok((name, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_brings_its_services_and_its_manifests() {
        let dir = tempfile::tempdir().expect("a directory");
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: shop}\n\
                     spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}\n";
        let mesh =
            "manifests: [more.yaml]\nworkloads:\n- {name: web, namespace: shop, command: [\"true\"], ports: [{port: 80}]}\n";
        std::fs::write(dir.path().join("more.yaml"), route).expect("written");
        let file = dir.path().join("mesh.yaml");
        std::fs::write(&file, mesh).expect("written");
        let files = read(&[file.clone(), dir.path().join("more.yaml")], false).expect("read").files;
        let names: Vec<&str> = files.iter().map(|(name, _)| name.rsplit('/').next().unwrap_or(name)).collect();
        assert_eq!(names, ["mesh.yaml, as manifests", "more.yaml"], "each once");
        let report = Report::of(&files);
        assert!(report.is_good(), "{}", report.shown());

        std::fs::write(&file, "workloads: 5\n").expect("written");
        assert!(read(&[file], false).is_err_and(|error| error.to_string().contains("mesh.yaml:1")));
    }
}
