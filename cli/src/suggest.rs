//! `weft suggest`: the least policies that allow what was recorded, as manifests.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use weft_control_plane::objects::Object;
use weft_control_plane::suggest::{Options, suggest};
use weft_control_plane::watch::parse::parse_each;
use weft_core::service::ObjectRef;
use weft_core::wellknown::DEFAULT_TRUST_DOMAIN;
use weft_core::{Namespace, TrustDomain};

use crate::fleet::Fleet;
use crate::output::print;
use crate::record::{self, Whose};
use crate::rundir::Which;
use crate::validate;

/// What `weft suggest` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Policies allow exactly what was let in while it was recorded, by caller, port, method and path; everything else in these namespaces is refused. \
Record for as long as it takes that everything rare has happened once: what was not seen will be refused. Look at them with weft explain --what-if, \
and put them in force with dryRun first.

Examples:
  weft suggest --flows flows.jsonl > policies.yaml
  weft suggest --flows flows.jsonl -n shop --collapse 20
  weft suggest --flows shop_web-0.log --flows shop_web-1.log
  weft suggest --flows flows.jsonl -f manifests/ | weft validate - manifests/")]
pub(crate) struct SuggestArgs {
    /// What weft record has written, or an access log in JSON; several may be given
    #[arg(long, value_name = "FLOWS", required = true)]
    flows: Vec<PathBuf>,

    /// Only what is called in this namespace; it is that of an access log's pods, too, where its lines say their names alone
    #[arg(short, long, value_name = "NS")]
    namespace: Option<Namespace>,

    /// Where more than N paths were seen of one caller, port and method, write templates and prefixes, which allow more than was seen
    #[arg(long, value_name = "N")]
    collapse: Option<usize>,

    /// Look for pods and Services in these manifests; - is standard input [default: in the mesh that runs]
    #[arg(short = 'f', long = "file", value_name = "FILE", conflicts_with = "context")]
    files: Vec<PathBuf>,

    /// Trust domain of the mesh
    #[arg(long, value_name = "DOMAIN", default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: TrustDomain,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,
}

pub(crate) fn main(args: &SuggestArgs) -> anyhow::Result<ExitCode> {
    let objects = objects(args)?;
    let identity = |pod: &ObjectRef| record::identity(&objects, &args.trust_domain, pod);
    let whose = Whose { namespace: args.namespace.as_ref(), identity: &identity };
    let mut flows = Vec::new();
    for file in &args.flows {
        let (header, mut found) = record::read(file, &whose)?;
        record::tell(&header);
        flows.append(&mut found);
    }
    let options = Options { domain: &args.trust_domain, namespace: args.namespace.as_ref(), collapse: args.collapse };
    let told = suggest(&flows, objects.iter(), options);
    for (why, calls) in &told.left_out {
        crate::complain(&format!("{calls} calls are not allowed by it: {why}"));
    }
    if told.flows == 0 {
        bail!("nothing can be suggested: no call was let in that a policy can be written for");
    }
    crate::complain(&format!("{} calls in {} flows are allowed by it, and nothing else", told.calls, told.flows));
    print(&told.manifests)?;
    Ok(ExitCode::SUCCESS)
}

fn objects(args: &SuggestArgs) -> anyhow::Result<Vec<Object>> {
    if args.files.is_empty() {
        return Fleet::find(&args.which, args.context.as_deref())?.objects();
    }
    let read = validate::read(&args.files, true)?;
    let parts = read.files.iter().flat_map(|(file, text)| parse_each(file, text));
    Ok(parts.filter_map(|part| part.object.ok()).collect())
}
