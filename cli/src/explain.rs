//! `weft explain`: whether a call would be let in, and why: of a mesh that runs, or of manifests. The answer is the control plane's own.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use weft_core::authorization::Posture;
use weft_core::egress::{EgressDefault, Host};
use weft_core::policy::MtlsMode;
use weft_core::service::ObjectRef;
use weft_core::{Namespace, ServiceAccount};
use weft_proto::v1;

use crate::fleet::{Cluster, Fleet};
use crate::operator::{self, Meant};
use crate::output::{Output, print};
use crate::record::{self, Whose};
use crate::rundir;
use offline::{Caller, Offline};
use replay::Replayed;
use told::{PairFlip, Told};

mod offline;
mod replay;
mod told;

/// What `weft explain` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Without --method, --path, --host and --header it is said what is known before any request: allowed, denied, or that it depends on each \
request. A mesh on this machine is asked where one runs and no --context is given; else the cluster, whose objects are read by kubectl. \
With -f it is answered from manifests alone: a Deployment's template, or one of another controller, counts as one pod with a \
sidecar. With --what-if it is answered with the manifests of that file laid over, and said what flips; without --from or --to, for every \
caller and every service, as far as it is known before any request.

Exit status: 0 where every pod of the service lets the call in, 1 where one does not or it depends on the request, 2 where there is no answer. \
Where all callers are asked for: 0 where nothing flips, 1 where something does.

Examples:
  weft explain --from front/client --to shop/web:80 --path /books/1
  weft explain --from front/client --to shop/web:80 --method PUT --path /books/1 --header x-tier=gold
  weft explain --unauthenticated --to shop/web:80
  weft explain --from front/client --to shop/web:80 --jwt-claims claims.json
  weft explain --from front/client --to shop/db:5432 -f manifests/ -f policies.yaml
  weft explain --from front/client --to shop/web:80 --path /admin --what-if new-policy.yaml
  weft explain --what-if new-policy.yaml
  weft explain --context kind-shop --from front/client --to shop/web:80
  weft explain --what-if new-policy.yaml --flows flows.jsonl
  weft explain --what-if new-policy.yaml --flows shop_web-0.log
  weft explain --from front/client --to shop/web:80 -o json | jq -r '.answers[].verdict'")]
pub(crate) struct ExplainArgs {
    /// Who calls, by its service account
    #[arg(long, value_name = "NS/ACCOUNT", value_parser = account, required_unless_present_any = ["unauthenticated", "from_pod", "what_if"])]
    from: Option<(Namespace, ServiceAccount)>,

    /// Which pod calls, which says its service account and its address; without it, the address is that of the first pod of the account
    #[arg(long, value_name = "NS/POD")]
    from_pod: Option<ObjectRef>,

    /// The caller proves no identity
    #[arg(long, conflicts_with = "from")]
    unauthenticated: bool,

    /// What is called: a Service, and the port that callers dial
    #[arg(long, value_name = "NS/SERVICE:PORT", value_parser = service, required_unless_present_any = ["what_if", "to_host"])]
    to: Option<(ObjectRef, u16)>,

    /// A host outside of the mesh that is called, and its port
    #[arg(long, value_name = "HOST:PORT", value_parser = outside, conflicts_with_all = ["to", "unauthenticated", "what_if"])]
    to_host: Option<(String, u16)>,

    /// With --to-host: the address that the host leads to, by which network policies are judged
    #[arg(long, value_name = "IP", requires = "to_host")]
    address: Option<IpAddr>,

    /// Method of the request [default: GET]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,

    /// Path of the request, as it is sent [default: /]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,

    /// Host of the request [default: SERVICE.NS]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,

    /// A header field of the request; several may be given
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,

    /// A file with the token that the request bears: verified by keys that stand in a `JwtIssuer`, else assumed to be signed, and told so; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "jwt_claims")]
    jwt: Option<PathBuf>,

    /// The claims of a token that is assumed to be valid: JSON, or a file with it
    #[arg(long, value_name = "JSON|FILE")]
    jwt_claims: Option<String>,

    /// Answer from these manifests, directories of them, or what weft up takes; - is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE", conflicts_with_all = ["mesh", "run_dir", "socket"])]
    files: Vec<PathBuf>,

    /// Answer as if these manifests stood as well, each in the place of one with its name
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    what_if: Vec<PathBuf>,

    /// With --what-if: tell which of these calls would get another answer: what weft record has written, or an access log in JSON
    #[arg(long, value_name = "FLOWS", requires = "what_if", conflicts_with_all = ["from", "from_pod", "unauthenticated", "to", "method", "path", "host", "headers"])]
    flows: Vec<PathBuf>,

    /// With --flows: the namespace of an access log's pods, where its lines say their names alone (kubectl logs --prefix)
    #[arg(short, long, value_name = "NS", requires = "flows")]
    namespace: Option<Namespace>,

    /// With -f: the mesh's own mTLS mode, where no file says so [default: permissive]
    #[arg(long, value_name = "MODE", requires = "files")]
    mtls: Option<MtlsMode>,

    /// With -f: the mesh's own default, where no file says so [default: allow]
    #[arg(long, value_name = "POLICY", requires = "files")]
    default_policy: Option<Posture>,

    /// With -f: what becomes of destinations that no ExternalService names, where no file says so [default: allow]
    #[arg(long, value_name = "DEFAULT", requires = "files")]
    egress: Option<EgressDefault>,

    #[command(flatten)]
    meant: Meant,

    /// Context of the kubeconfig: a mesh on that cluster is meant, and its objects are read by kubectl
    #[arg(long, value_name = "NAME", conflicts_with_all = ["files", "mesh", "run_dir", "socket"])]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

fn account(text: &str) -> Result<(Namespace, ServiceAccount), String> {
    let (namespace, name) = text.split_once('/').ok_or("write it as NAMESPACE/SERVICE-ACCOUNT")?;
    let said = |e: weft_core::identity::InvalidName| e.to_string();
    Ok((namespace.parse().map_err(said)?, name.parse().map_err(said)?))
}

fn service(text: &str) -> Result<(ObjectRef, u16), String> {
    let (id, port) = text.rsplit_once(':').ok_or("write it as NAMESPACE/SERVICE:PORT")?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or("the port is not a number from 1 to 65535")?;
    Ok((id.parse().map_err(|e: weft_core::identity::InvalidName| e.to_string())?, port))
}

fn outside(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or("write it as HOST:PORT")?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or("the port is not a number from 1 to 65535")?;
    let host = Host::read(host).ok_or("the host is neither a name nor an address; IPv6 stands in brackets")?;
    Ok((host.to_string(), port))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(crate) fn main(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    match run(args) {
        Ok((text, is_good)) => {
            print(&text)?;
            Ok(ExitCode::from(u8::from(!is_good)))
        }
        Err(error) => {
            crate::complain(&format!("{error:#}"));
            Ok(ExitCode::from(2))
        }
    }
}

/// What is printed, and whether that is what one wishes to read.
fn run(args: &ExplainArgs) -> anyhow::Result<(String, bool)> {
    if !args.flows.is_empty() {
        let told = replayed(args)?;
        let text = args.output.render(|_| told.shown(), &told)?;
        return Ok((text, told.is_same()));
    }
    let has_caller = args.from.is_some() || args.from_pod.is_some() || args.unauthenticated;
    if has_caller && (args.to.is_some() || args.to_host.is_some()) {
        let told = answer(args)?;
        let text = args.output.render(|_| told.shown(), &told)?;
        return Ok((text, told.is_allowed()));
    }
    let flips = flips(args)?;
    let text = args.output.render(|_| PairFlip::shown(&flips), &serde_json::json!({ "flips": flips }))?;
    Ok((text, flips.is_empty()))
}

/// What further manifests change, for all callers and services but those that are left out by name.
fn flips(args: &ExplainArgs) -> anyhow::Result<Vec<PairFlip>> {
    if args.from_pod.is_some() || has_call(args) {
        bail!("a pod or a request is asked about with both --from and --to");
    }
    let from = args.from.as_ref().map(|(namespace, account)| Caller::Account(namespace.to_string(), account.to_string()));
    let from = from.or(args.unauthenticated.then_some(Caller::Nobody));
    let before = offline(args)?;
    before.flips(&before.clone().with(&args.what_if)?, from.as_ref(), args.to.as_ref())
}

/// What recorded calls would be answered, and whether all would be as before.
fn replayed(args: &ExplainArgs) -> anyhow::Result<Replayed> {
    let before = offline(args)?;
    let whose = Whose { namespace: args.namespace.as_ref(), identity: &|pod| before.identity(pod) };
    let mut flows = Vec::new();
    for file in &args.flows {
        let (header, mut found) = record::read(file, &whose)?;
        record::tell(&header);
        flows.append(&mut found);
    }
    Ok(Replayed::of(&flows, &before, &before.clone().with(&args.what_if)?))
}

/// Where the answer comes from.
enum Place {
    Files,
    Socket(PathBuf),
    Fleet(Fleet),
}

fn place(args: &ExplainArgs) -> anyhow::Result<Place> {
    if !args.files.is_empty() {
        return Ok(Place::Files);
    }
    match args.meant.named() {
        Some(socket) => Ok(Place::Socket(socket.to_owned())),
        None => Ok(Place::Fleet(Fleet::find(&args.meant.which, args.context.as_deref())?)),
    }
}

/// The manifests that are asked.
fn offline(args: &ExplainArgs) -> anyhow::Result<Offline> {
    let offline = match place(args)? {
        Place::Files => Offline::of(&args.files)?,
        Place::Fleet(Fleet::Run(run)) => of_mesh(&run)?,
        Place::Fleet(Fleet::Cluster(context)) => Offline::of_cluster(Cluster::read(context.as_deref())?)?,
        Place::Socket(_) => bail!("a control plane at a socket is asked about what is in force alone: give manifests with -f"),
    };
    Ok(offline.with_defaults(args.mtls, args.default_policy).with_egress(args.egress))
}

fn answer(args: &ExplainArgs) -> anyhow::Result<Told> {
    let question = question(args)?;
    let socket = match place(args)? {
        Place::Socket(socket) => Some(socket),
        Place::Fleet(Fleet::Run(run)) => Some(run.join(rundir::OPERATOR_SOCKET)),
        Place::Files | Place::Fleet(Fleet::Cluster(_)) => None,
    };
    if let (Some(socket), true) = (socket, args.what_if.is_empty()) {
        let answer = operator::ask(&socket, async |mut operator| operator.explain(question.clone()).await)?;
        return Ok(Told::new(&question, &answer));
    }
    let offline = offline(args)?;
    let before = offline.explain(&question);
    if args.what_if.is_empty() {
        return Ok(Told::new(&question, &before?));
    }
    let after = offline.with(&args.what_if)?.explain(&question)?;
    Ok(Told::new(&question, &after).flipped(before.as_ref().ok()))
}

/// The manifests that a mesh on this machine runs by.
fn of_mesh(run: &Path) -> anyhow::Result<Offline> {
    let status = operator::ask(&run.join(rundir::OPERATOR_SOCKET), async |mut operator| operator.status().await)?;
    if status.mtls.is_empty() || status.default_policy.is_empty() {
        bail!("the control plane does not say what the mesh has by default: it is of an older version");
    }
    // One of an older version lets everything out.
    let egress = if status.egress.is_empty() { EgressDefault::Allow } else { status.egress.parse()? };
    let offline = Offline::of(&[run.join(rundir::MANIFESTS)])?;
    Ok(offline.of_mesh(status.trust_domain.parse()?, status.mtls.parse()?, status.default_policy.parse()?, egress))
}

fn has_call(args: &ExplainArgs) -> bool {
    args.method.is_some()
        || args.path.is_some()
        || args.host.is_some()
        || !args.headers.is_empty()
        || args.jwt.is_some()
        || args.jwt_claims.is_some()
}

fn question(args: &ExplainArgs) -> anyhow::Result<v1::ExplainRequest> {
    let (token, claims) = (args.jwt.as_deref().map(token).transpose()?, args.jwt_claims.as_deref().map(claims).transpose()?);
    let text = |maybe: &Option<String>| maybe.clone().unwrap_or_default();
    let headers = args.headers.iter().map(|(name, value)| v1::CallHeader { name: name.clone(), value: value.clone() });
    Ok(v1::ExplainRequest {
        from: args.from.as_ref().map(|(ns, name)| v1::ObjectRef { namespace: ns.to_string(), name: name.to_string() }),
        from_pod: args.from_pod.as_ref().map(Into::into),
        unauthenticated: args.unauthenticated,
        to: args.to.as_ref().map(|(id, _)| id.into()),
        port: args.to.as_ref().map(|(_, port)| *port).or(args.to_host.as_ref().map(|(_, port)| *port)).map_or(0, Into::into),
        to_host: args.to_host.as_ref().map(|(host, _)| host.clone()).unwrap_or_default(),
        to_address: args.address.map(|ip| ip.to_string()).unwrap_or_default(),
        call: has_call(args).then(|| v1::ExplainedCall {
            method: text(&args.method),
            path: text(&args.path),
            host: text(&args.host),
            headers: headers.collect(),
            token: token.unwrap_or_default().into(),
            claims: claims.unwrap_or_default().into(),
        }),
    })
}

/// The most that is read of a token or its claims, in bytes.
const LONGEST: u64 = 64 << 10;

fn token(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let from: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(file).with_context(|| format!("the token {} cannot be read", file.display()))?)
    };
    from.take(LONGEST).read_to_end(&mut text).with_context(|| format!("the token {} cannot be read", file.display()))?;
    if text.trim_ascii().is_empty() {
        bail!("the token {} is empty", file.display());
    }
    Ok(text)
}

/// JSON begins with a brace; anything else names a file.
fn claims(given: &str) -> anyhow::Result<Vec<u8>> {
    if given.trim_start().starts_with('{') { Ok(given.into()) } else { token(Path::new(given)) }
}

#[cfg(test)]
mod tests;
