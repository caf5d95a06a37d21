//! `weft-certs`: writes a throwaway anchor, issuer and leaves into a directory.

mod files;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::bail;
use clap::Parser;
use weft_certs::{Authority, LeafKind, LeafSpec, UnknownKind};
use weft_core::wellknown::DEFAULT_TRUST_DOMAIN;
use weft_core::{SpiffeId, TrustDomain};

use crate::files::{PlannedFile, Secrecy};

/// Makes a throwaway anchor, issuer and leaves for development and tests. Never for production.
///
/// Writes root.pem, issuer.pem, issuer.key, and for each identity and kind NAME.pem (the chain) and NAME.key.
/// NAME is the namespace and the service account, joined by `_`, with `_` and the kind behind them unless
/// it is `valid`.
#[derive(Debug, Parser)]
#[command(name = "weft-certs", version)]
struct Args {
    /// The directory to write to; made with mode 0700 if it is missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// The trust domain that the authority vouches for.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: TrustDomain,

    /// Whom to make leaves for; may be given again. Without it: the service
    /// account `default` in the namespace `default`.
    #[arg(long = "id", value_name = "SPIFFE_ID")]
    ids: Vec<SpiffeId>,

    /// What should be wrong with the leaves, or `all` for one of each kind; may be given again.
    #[arg(long = "kind", value_name = "KIND|all", default_value = "valid")]
    kinds: Vec<KindChoice>,

    /// Replace files that are there already. Leaves of an earlier run that are not made anew stay, and
    /// the new root does not vouch for them.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy)]
enum KindChoice {
    All,
    One(LeafKind),
}

impl KindChoice {
    fn covers(self, kind: LeafKind) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == kind,
        }
    }
}

impl FromStr for KindChoice {
    type Err = UnknownKind;

    fn from_str(s: &str) -> Result<Self, UnknownKind> {
        if s == "all" { Ok(Self::All) } else { s.parse().map(Self::One) }
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let planned = plan(&args)?;
    let written = files::write_all(&args.out, &planned, args.force)?;
    let mut stdout = std::io::stdout().lock();
    for path in written {
        writeln!(stdout, "{}", path.display())?;
    }
    Ok(())
}

/// Makes everything before anything is written, so that an error leaves the directory as it was.
fn plan(args: &Args) -> anyhow::Result<Vec<PlannedFile>> {
    let ids: BTreeSet<SpiffeId> =
        if args.ids.is_empty() { BTreeSet::from([default_id(&args.trust_domain)]) } else { args.ids.iter().cloned().collect() };
    if let Some(foreign) = ids.iter().find(|id| *id.trust_domain() != args.trust_domain) {
        bail!(
            "{foreign} is not of the trust domain {}; name its own with --trust-domain, or take --kind wrong-trust-domain \
             for a leaf that should be wrong",
            args.trust_domain
        );
    }

    let authority = Authority::try_new(args.trust_domain.as_str())?;
    let mut planned = vec![
        PlannedFile::new("root.pem", authority.root_pem(), Secrecy::Public),
        PlannedFile::new("issuer.pem", authority.issuer_pem(), Secrecy::Public),
        PlannedFile::new("issuer.key", authority.issuer_key_pem(), Secrecy::Secret),
    ];
    for id in &ids {
        for kind in LeafKind::ALL.into_iter().filter(|kind| args.kinds.iter().any(|choice| choice.covers(*kind))) {
            let leaf = authority.try_leaf(&LeafSpec::new(kind, id.to_string()))?;
            let name = file_name(id, kind);
            planned.push(PlannedFile::new(format!("{name}.pem"), leaf.chain_pem(), Secrecy::Public));
            planned.push(PlannedFile::new(format!("{name}.key"), leaf.key_pem(), Secrecy::Secret));
        }
    }
    Ok(planned)
}

fn default_id(trust_domain: &TrustDomain) -> SpiffeId {
    let namespace = "default".parse().expect("`default` is a label");
    let service_account = "default".parse().expect("`default` is a label");
    SpiffeId::new(trust_domain.clone(), namespace, service_account)
}

/// Underscores are in no Kubernetes name, so that two leaves never share a file.
fn file_name(id: &SpiffeId, kind: LeafKind) -> String {
    let (namespace, service_account) = (id.namespace(), id.service_account());
    match kind {
        LeafKind::Valid => format!("{namespace}_{service_account}"),
        _ => format!("{namespace}_{service_account}_{kind}"),
    }
}
