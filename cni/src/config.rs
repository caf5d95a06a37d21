//! Everything that can be set, in one table.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use weft_core::Namespace;
use weft_core::wellknown::CONTROL_PLANE_NAMESPACE;

use crate::SOCKET;
use crate::node::Node;

/// weft's CNI plugin, and its agent on each node.
///
/// With `CNI_COMMAND` in the environment, as container runtimes start it, this is the plugin.
#[derive(Parser, Debug)]
#[command(name = "weft-cni", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Install the plugin on this node, keep it there, and apply redirects for it, until told to stop
    Install(Box<Config>),
    /// Take the plugin off this node
    Uninstall(NodeConfig),
    /// Tell what the agent that runs here logs, or change it until that starts anew
    Log {
        /// A level, or TARGET=LEVEL joined by commas
        filter: Option<String>,
    },
    /// Be the other end of a proof.
    #[command(name = weft_redirect::PROBE_PEER, hide = true)]
    ProbePeer,
}

/// What the agent is told.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// Where the node keeps its plugins.
    #[command(flatten)]
    pub node: NodeConfig,

    /// Where the plugin finds the agent: a path that is the same on the node and here
    #[arg(long, env = "WEFT_CNI_SOCKET", value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,

    /// Namespaces besides the agent's own whose pods are never in the mesh, and so start without the agent
    #[arg(
        long,
        env = "WEFT_CNI_EXEMPT",
        value_name = "NAMESPACE,…",
        value_delimiter = ',',
        default_value = "kube-node-lease,kube-public,kube-system"
    )]
    pub exempt: Vec<Namespace>,

    /// What becomes of a pod that started without its redirect, and that something would make anew
    #[arg(long, env = "WEFT_CNI_REPAIR", value_name = "HOW", default_value = "delete")]
    pub repair: Repair,

    /// Whether this program, as it is linked, runs on the node. One that is linked statically always does; of another it must be said,
    /// since no pod of the node starts where it does not
    #[arg(
        long,
        env = "WEFT_CNI_RUNS_ON_NODE",
        value_name = "BOOL",
        action = clap::ArgAction::Set,
        // One that was built for its debugging is run where it was built.
        default_value_t = cfg!(debug_assertions)
    )]
    pub runs_on_node: bool,

    /// Port for /live, /ready and /metrics, on every address
    #[arg(long, env = "WEFT_STATUS_PORT", value_name = "PORT", default_value_t = 4702)]
    pub status_port: u16,

    /// The agent's own namespace
    #[arg(long, env = "WEFT_NAMESPACE", value_name = "NAMESPACE", default_value = CONTROL_PLANE_NAMESPACE)]
    pub namespace: Namespace,

    /// The `DaemonSet` that the agent is of: it takes the plugin away where that is gone
    #[arg(long, env = "WEFT_CNI_DAEMON_SET", value_name = "NAME", default_value = "weft-cni")]
    pub daemon_set: String,

    /// The node that the agent is on
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value = "")]
    pub node_name: String,

    /// The agent's pod
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "")]
    pub pod_name: String,

    /// Work without a cluster, from a directory with the pods as `NAMESPACE/NAME.json`
    #[arg(long, env = "WEFT_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Mark of the sidecar's sockets, where there is one user only, as in a user namespace
    #[arg(long, hide = true, value_name = "MARK")]
    pub exempt_mark: Option<u32>,

    /// What is logged (tracing filter), to standard error
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// Where the node keeps its plugins and their configuration.
#[derive(Args, Debug, Clone)]
pub struct NodeConfig {
    /// The runtime's directory of plugins, as it is seen here
    #[arg(long, env = "WEFT_CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,

    /// The runtime's directory of network configurations, as it is seen here
    #[arg(long, env = "WEFT_CNI_CONF_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
}

/// What becomes of a pod that started without its redirect.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// It is deleted, if it has a controller, which makes it anew.
    Delete,
    /// It is counted and logged.
    Never,
}

impl NodeConfig {
    /// The node.
    pub fn node(&self) -> Node {
        Node { bin_dir: self.bin_dir.clone(), conf_dir: self.conf_dir.clone() }
    }
}

impl Config {
    /// What is missing in a cluster: who the agent is, and which pods are its own. Without, it would repair none, and ask nobody.
    pub fn check(&self) -> Result<(), String> {
        let given = [("--node-name (NODE_NAME)", &self.node_name), ("--pod-name (POD_NAME)", &self.pod_name)];
        match given.iter().find(|(_, value)| self.dir.is_none() && value.is_empty()) {
            Some((flag, _)) => Err(format!("{flag} is empty: in a cluster, the agent must know which node and which pod it is")),
            None => Ok(()),
        }
    }

    /// Every namespace that is let through, the agent's own among them.
    pub fn exempt(&self) -> Vec<String> {
        let mut all: Vec<String> = self.exempt.iter().chain([&self.namespace]).map(ToString::to_string).collect();
        all.sort();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn in_a_cluster_the_agent_knows_who_it_is() {
        let check = |flags: &[&str]| {
            let all = ["weft-cni", "install"].iter().chain(flags).copied();
            match Cli::try_parse_from(all).expect("well formed").command {
                Command::Install(config) => config.check(),
                _ => panic!("that is what it said"),
            }
        };
        assert_eq!(check(&["--node-name=n1", "--pod-name=weft-cni-x"]), Ok(()));
        assert!(check(&["--node-name=", "--pod-name=weft-cni-x"]).is_err_and(|why| why.contains("NODE_NAME")));
        assert!(check(&["--node-name=n1", "--pod-name="]).is_err_and(|why| why.contains("POD_NAME")));
        assert_eq!(check(&["--dir=/pods"]), Ok(()));
    }

    #[test]
    fn the_table_of_flags_is_sound() {
        Cli::command().debug_assert();
        let Command::Install(config) =
            Cli::try_parse_from(["weft-cni", "install", "--repair=never"]).expect("well formed").command
        else {
            panic!("that is what it said");
        };
        assert_eq!(config.exempt(), ["kube-node-lease", "kube-public", "kube-system", "weft-system"]);
        assert_eq!((config.repair, config.node.node().bin_dir), (Repair::Never, PathBuf::from("/opt/cni/bin")));
    }
}
