//! What the plugin and the agent say to each other over a Unix socket: one question with a network namespace, one answer.
//!
//! A question is a line of JSON of at most [`MAX_LINE`] bytes, sent with the open namespace as ancillary data (`SCM_RIGHTS`); the
//! answer is a line of JSON. A path would mean nothing to the agent, whose container sees another file system.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

/// The most bytes that a question or an answer has. Names of pods and namespaces have 253 at most; messages are cut.
pub const MAX_LINE: usize = 16 * 1024;

/// What the agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Redirect the pod, if it is to be.
    Add,
    /// Tell whether it is redirected, if it is to be.
    Check,
}

/// A question about one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What to do.
    pub task: Task,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid, where the runtime says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Answer {
    /// The redirect is in force.
    InForce,
    /// The pod is not one to redirect.
    Left {
        /// Why not.
        why: String,
    },
    /// What is in the way may go away.
    Later {
        /// What it is.
        why: String,
    },
    /// The redirect is refused, or is not in place.
    Refused {
        /// Why.
        why: String,
    },
}

/// Asks, and waits for the answer as long as the stream's timeouts let it.
pub fn ask(stream: &UnixStream, question: &Question, namespace: BorrowedFd<'_>) -> io::Result<Answer> {
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    let rights = [namespace.as_raw_fd()];
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&line)],
        &[ControlMessage::ScmRights(&rights)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    let mut stream = stream;
    // What is behind the first bytes needs no namespace.
    stream.write_all(&line[sent..])?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE as u64)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up without an answer"));
    }
    Ok(serde_json::from_str(&answer)?)
}

/// Takes a question, and the namespace that came with it.
pub fn receive(stream: &UnixStream) -> io::Result<(Question, OwnedFd)> {
    let mut buffer = vec![0; MAX_LINE];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut namespaces = Vec::new();
    let mut length = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                namespaces.extend(raw.into_iter().map(own));
            }
        }
        message.bytes
    };
    let mut stream = stream;
    while !buffer[..length].contains(&b'\n') {
        let more = stream.read(&mut buffer[length..])?;
        if more == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the question has no end"));
        }
        length += more;
    }
    let line = buffer[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let question = serde_json::from_slice(line)?;
    match (namespaces.pop(), namespaces.is_empty()) {
        (Some(namespace), true) => Ok((question, namespace)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the question has not one network namespace")),
    }
}

/// Gives the answer.
pub fn answer(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[expect(unsafe_code, reason = "the kernel hands over plain numbers")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for this process while it received the message, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use std::thread;

    use super::*;

    fn question() -> Question {
        Question { task: Task::Add, namespace: "shop".to_owned(), name: "web-1".to_owned(), uid: Some("7".to_owned()) }
    }

    #[test]
    fn a_question_brings_its_namespace_and_gets_its_answer() {
        let (plugin, agent) = UnixStream::pair().expect("a pair of sockets");
        let file = File::open("/dev/null").expect("every machine has it");
        let device = file.metadata().expect("it is open").rdev();
        let agent = thread::spawn(move || {
            let (asked, namespace) = receive(&agent).expect("a question");
            let same = File::from(namespace).metadata().expect("it is open").rdev();
            answer(&agent, &Answer::Left { why: "a\nb".to_owned() }).expect("the plugin waits");
            (asked, same)
        });
        assert_eq!(ask(&plugin, &question(), file.as_fd()).expect("an answer"), Answer::Left { why: "a\nb".to_owned() });
        assert_eq!(agent.join().expect("no panic"), (question(), device));
    }

    #[test]
    fn what_is_no_question_is_an_error() {
        let long = vec![b'x'; MAX_LINE + 1];
        for bytes in [&b""[..], b"{", b"{}\n", b"\n", &long[..]] {
            let (mut plugin, agent) = UnixStream::pair().expect("a pair of sockets");
            let bytes = bytes.to_vec();
            let plugin = thread::spawn(move || {
                // The agent may give up before it has read everything.
                let _ = plugin.write_all(&bytes);
            });
            assert!(receive(&agent).is_err());
            drop(agent);
            plugin.join().expect("no panic");
        }
        let (mut plugin, agent) = UnixStream::pair().expect("a pair of sockets");
        plugin
            .write_all(&[serde_json::to_vec(&question()).expect("plain data"), b"\n".to_vec()].concat())
            .expect("there is room");
        assert!(receive(&agent).is_err_and(|error| error.to_string().contains("network namespace")));
    }

    #[test]
    fn an_agent_that_hangs_up_is_an_error() {
        let (plugin, agent) = UnixStream::pair().expect("a pair of sockets");
        let file = File::open("/dev/null").expect("every machine has it");
        drop(agent);
        assert!(ask(&plugin, &question(), file.as_fd()).is_err());
    }
}
