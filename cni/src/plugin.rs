//! The plugin: what the container runtime starts for each container. It asks the agent, and ends.
//!
//! Nothing of the agent's is started here: no runtime, no client of the API server.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::protocol::{self, CniError, Code, Environment, Operation};
use crate::wire::{self, Answer, Question, Task};

/// The most that is read from standard input: a configuration, and what the plugins before have answered.
const MAX_INPUT: u64 = 1 << 20;
/// How long the agent may take, the API server and the rules included. Runtimes wait for minutes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What of the configuration is ours: [`crate::chain::entry`] writes it.
#[derive(Debug, Deserialize)]
pub struct NetConf {
    /// The agent's socket.
    pub socket: String,
    /// Namespaces whose pods are let through without a question.
    pub exempt: Vec<String>,
}

/// Answers one call of the runtime, by the environment and standard input.
pub fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut input);
    let outcome = match read {
        Err(error) => Err(CniError::new(Code::Io, format!("standard input can't be read: {error}"))),
        Ok(_) if input.len() as u64 > MAX_INPUT => {
            Err(CniError::new(Code::Decode, format!("standard input has more than {MAX_INPUT} bytes")))
        }
        Ok(_) => call(&Environment::of_this_process(), &input, &ask),
    };
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => {
            let version = protocol::configuration(&input).ok();
            let version = version.as_ref().and_then(|fields| fields.get("cniVersion")).and_then(Value::as_str);
            (Some(error.shown(version)), ExitCode::FAILURE)
        }
    };
    let written = text.map_or(Ok(()), |text| writeln!(io::stdout().lock(), "{text}"));
    if written.is_ok() { code } else { ExitCode::FAILURE }
}

/// How the agent at a socket is asked about the pod whose network namespace has this path.
pub type Ask<'a> = &'a dyn Fn(&str, &Question, &str) -> Result<Answer, CniError>;

/// One call: what is printed, if anything is.
pub fn call(environment: &Environment, input: &[u8], ask: Ask<'_>) -> Result<Option<Value>, CniError> {
    let operation = Operation::read(&environment.command)?;
    let fields = protocol::configuration(input)?;
    if operation == Operation::Version {
        return Ok(Some(protocol::versions(fields.get("cniVersion").and_then(Value::as_str))));
    }
    let version = protocol::version(&fields)?;
    if !operation.is_in(version) {
        let message = format!("CNI {version} has no {}", environment.command);
        return Err(CniError::new(Code::Version, message));
    }
    match operation {
        Operation::Add => {
            let result = previous(&fields)?;
            redirect(environment, &fields, Task::Add, ask)?;
            Ok(Some(result.clone()))
        }
        Operation::Check => {
            previous(&fields)?;
            redirect(environment, &fields, Task::Check, ask)?;
            Ok(None)
        }
        // The rules are in the network namespace and go with it: nothing is left to clean up. And containers can be added even
        // without the agent, namely its own; a node that says otherwise would never start it.
        Operation::Del | Operation::Gc | Operation::Status | Operation::Version => Ok(None),
    }
}

/// What the plugins before have made, which a chained plugin passes on.
fn previous(fields: &Map<String, Value>) -> Result<&Value, CniError> {
    let missing = "there is no prevResult: this plugin goes behind another one in the list, which makes the network";
    fields.get("prevResult").filter(|result| result.is_object()).ok_or_else(|| CniError::new(Code::Configuration, missing))
}

fn redirect(environment: &Environment, fields: &Map<String, Value>, task: Task, ask: Ask<'_>) -> Result<(), CniError> {
    let wrong = |error| CniError::new(Code::Configuration, format!("the plugin's part of the network configuration: {error}"));
    let own = NetConf::deserialize(&Value::Object(fields.clone())).map_err(wrong)?;
    // Who else uses this network than the kubelet has no pods.
    let Some(namespace) = environment.argument("K8S_POD_NAMESPACE") else { return Ok(()) };
    if own.exempt.iter().any(|exempt| exempt == namespace) {
        return Ok(());
    }
    let name = environment.argument("K8S_POD_NAME");
    let name = name.ok_or_else(|| CniError::new(Code::Environment, "CNI_ARGS has a K8S_POD_NAMESPACE and no K8S_POD_NAME"))?;
    if environment.netns.is_empty() {
        return Err(CniError::new(Code::Environment, "CNI_NETNS is empty"));
    }
    let uid = environment.argument("K8S_POD_UID").map(str::to_owned);
    let question = Question { task, namespace: namespace.to_owned(), name: name.to_owned(), uid };
    match ask(&own.socket, &question, &environment.netns)? {
        Answer::InForce | Answer::Left { .. } => Ok(()),
        Answer::Later { why } => Err(CniError::new(Code::TryAgain, format!("pod {namespace}/{name}: {why}"))),
        Answer::Refused { why } => {
            let code = if task == Task::Check { Code::NotInForce } else { Code::Refused };
            Err(CniError::new(code, format!("pod {namespace}/{name}: {why}")))
        }
    }
}

/// Asks the agent.
fn ask(socket: &str, question: &Question, netns: &str) -> Result<Answer, CniError> {
    let file = File::open(netns)
        .map_err(|error| CniError::new(Code::Io, format!("the network namespace CNI_NETNS={netns} can't be opened: {error}")))?;
    let asked = UnixStream::connect(socket).and_then(|stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        wire::ask(&stream, question, file.as_fd())
    });
    asked.map_err(|error| {
        let message = format!(
            "weft's agent on this node does not answer at {socket} ({error}), and without it no pod that may be in the mesh starts: \
             see why the pod of DaemonSet weft-cni does not run here; where weft is gone, run: weft-cni uninstall"
        );
        CniError::new(Code::TryAgain, message)
    })
}

#[cfg(test)]
mod tests;
