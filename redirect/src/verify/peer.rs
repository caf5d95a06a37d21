//! The process at the other end of a probe, and the words that it is told what to do with.
//!
//! Both ends are this program: the one that verifies starts the other, which reads an order a line and
//! answers each with a line, until its standard input ends.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};
use socket2::Socket;

use super::trap::{Dialled, dial, listen, readable};
use crate::error::{Refusal, VerifyError};
use crate::tools::run;

/// The word by which this crate's own program is told to be the peer; see [`probe_peer`].
pub const PROBE_PEER: &str = "probe-peer";

/// How long an order may take before the peer is given up.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// How to start a process that calls [`probe_peer`].
#[derive(Clone, Debug)]
pub struct PeerProgram {
    program: PathBuf,
    args: Vec<OsString>,
}

impl PeerProgram {
    /// `program`, given `args`, must call [`probe_peer`] and do nothing else.
    pub fn new(program: PathBuf, args: Vec<OsString>) -> Self {
        Self { program, args }
    }

    /// The running program itself, told [`PROBE_PEER`].
    pub fn this_program() -> io::Result<Self> {
        Ok(Self::new(env::current_exe()?, vec![OsString::from(PROBE_PEER)]))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Go to a network namespace of your own.
    Leave,
    /// Take your end of the link, with these addresses (`192.0.2.2/30`), and listen there.
    Join { link: String, addresses: Vec<String>, listen: Vec<SocketAddr> },
    /// Connect, and hang up.
    Connect { to: SocketAddr, within: Duration },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    /// The order was carried out: the connection was tried, and not made.
    NotConnected(String),
    /// The order could not be carried out.
    Failed(String),
}

/// The peer as the one that verifies sees it; it ends with this value.
pub(super) struct Peer {
    /// Keeps its standard input, so that waiting for it closes that first and it ends by itself.
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the peer, as another user if need be.
    pub(super) fn start(peer: &PeerProgram, uid: Option<u32>) -> io::Result<Self> {
        let mut command = Command::new(&peer.program);
        command.args(&peer.args).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid);
        }
        let mut process = command.spawn()?;
        let answers = process.stdout.take().expect("standard output was asked to be a pipe");
        Ok(Self { process, answers: BufReader::new(answers) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Tells the peer to do something and waits until it is done. The answer to a [`Order::Connect`] says
    /// what became of the connection; to anything else it is `Ok`.
    pub(super) fn ask(&mut self, doing: &'static str, order: &Order) -> Result<Dialled, VerifyError> {
        match self.exchange(order) {
            Ok(Answer::Done) => Ok(Ok(())),
            Ok(Answer::NotConnected(why)) => Ok(Err(why)),
            Ok(Answer::Failed(why)) => Err(VerifyError::Peer { doing, why }),
            Err(error) => Err(VerifyError::Peer { doing, why: error.to_string() }),
        }
    }

    fn exchange(&mut self, order: &Order) -> io::Result<Answer> {
        let orders = self.process.stdin.as_mut().expect("standard input was asked to be a pipe, and is never taken");
        writeln!(orders, "{}", serde_json::to_string(order)?)?;
        orders.flush()?;
        // The peer says one line an order, so between orders the buffer is empty and the pipe tells all.
        if !readable(self.answers.get_ref(), ANSWERS_WITHIN)? {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other("it ended without an answer"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may be another user's, and then must end by itself; either way it is gone afterwards.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Is the other end of [`verify`](super::verify()): takes orders from standard input until it ends. To be called
/// from a process that has one thread, since it may enter a user namespace.
pub fn probe_peer() -> io::Result<()> {
    let mut listening = Vec::new();
    for line in io::stdin().lock().lines() {
        let answer = match obey(serde_json::from_str(&line?)?, &mut listening) {
            Ok(Ok(())) => Answer::Done,
            Ok(Err(why)) => Answer::NotConnected(why),
            Err(why) => Answer::Failed(why),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

fn obey(order: Order, listening: &mut Vec<Socket>) -> Result<Dialled, String> {
    match order {
        Order::Leave => leave()?,
        Order::Join { link, addresses, listen: at } => {
            join(&link, &addresses).map_err(|refusal| refusal.to_string())?;
            for address in at {
                listening.push(listen(address).map_err(|error| format!("could not listen on {address}: {error}"))?);
            }
        }
        Order::Connect { to, within } => return dial(to, None, within).map_err(|error| error.to_string()),
    }
    Ok(Ok(()))
}

/// Enters a new network namespace: outright where the process may, else as root of a new user namespace.
fn leave() -> Result<(), String> {
    const REMEDY: &str = "the proof for incoming connections needs a second network namespace: add SYS_ADMIN to \
        the init container's capabilities, or SETFCAP where user namespaces are allowed; outbound alone needs neither";
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(format!("no new network namespace: {error}")),
    }
    let (uid, gid) = (Uid::effective(), Gid::effective());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("no new network namespace, nor a user namespace for it: {error}; {REMEDY}"))?;
    // Not root there, `ip` would lose its rights when it starts. A group may be mapped once setgroups is denied.
    let maps = [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))];
    for (file, content) in maps {
        fs::write(format!("/proc/self/{file}"), content)
            .map_err(|error| format!("no root in the new user namespace ({file}: {error}); {REMEDY}"))?;
    }
    Ok(())
}

fn join(link: &str, addresses: &[String]) -> Result<(), Refusal> {
    run("ip", &["link", "set", "lo", "up"], "")?;
    for address in addresses {
        add_address(link, address)?;
    }
    run("ip", &["link", "set", link, "up"], "").map(drop)
}

/// `nodad`: the link is ours alone, and duplicate address detection would take a second.
pub(super) fn add_address(link: &str, address: &str) -> Result<(), Refusal> {
    let mut args = vec!["addr", "add", address, "dev", link];
    if address.contains(':') {
        args.push("nodad");
    }
    run("ip", &args, "").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_are_one_line_and_survive_the_pipe() {
        let order = Order::Join {
            link: "weft-probe1".to_owned(),
            addresses: vec!["192.0.2.2/30".to_owned()],
            listen: vec![SocketAddr::from(([192, 0, 2, 2], 7))],
        };
        let line = serde_json::to_string(&order).expect("an order is plain data");
        assert!(!line.contains('\n'));
        let Ok(Order::Join { link, addresses, listen }) = serde_json::from_str(&line) else {
            panic!("{line} does not read back");
        };
        assert_eq!((link.as_str(), addresses.len(), listen.len()), ("weft-probe1", 1, 1));

        let answer = Answer::NotConnected("a\nb".to_owned());
        let line = serde_json::to_string(&answer).expect("an answer is plain data");
        assert!(!line.contains('\n'));
        let read: Result<Answer, _> = serde_json::from_str(&line);
        assert!(matches!(read, Ok(Answer::NotConnected(why)) if why == "a\nb"));
    }

    #[test]
    fn a_peer_that_ends_without_a_word_is_an_error_that_says_so() {
        let silent = PeerProgram::new(PathBuf::from("/bin/sh"), vec!["-c".into(), "read order".into()]);
        let mut peer = Peer::start(&silent, None).expect("/bin/sh is on every machine");
        match peer.ask("leave", &Order::Leave) {
            Err(VerifyError::Peer { doing: "leave", why }) => assert!(why.contains("without an answer"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
